"""Execution providers: those that are here, why others are not, and whether one suits a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from recycle_onnx.bundle import Manifest
from recycle_onnx.doctor.assignment import Assignment
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.errors import InputError
from recycle_onnx.runtime import providers

COMPUTE = ("MatMul", "MatMulNBits", "FusedMatMul", "Gemm", "Attention", "GroupQueryAttention")
"""Operators whose place decides the speed; shapes and masks may be computed anywhere."""


@dataclass(frozen=True)
class Provider:
    """A provider by our name and ONNX Runtime's; `why_not` says why it cannot be used and what brings it, or is None.

    `tested` says how far we have seen it ourselves.
    """

    name: str
    onnxruntime_name: str
    why_not: str | None
    package: str
    flavours: tuple[str, ...]
    tested: str


def find() -> list[Provider]:
    """All that we know, whether they are here or not."""
    return [
        Provider(p.name, p.ort_name, providers.why_missing(p), p.package, p.flavours, p.tested)
        for p in providers.PROVIDERS.values()
    ]


def choose(name: str) -> str:
    """The provider of this name, or for `auto` the best one here.

    Raises:
        InputError: it is not known, or not here.
    """
    if name == providers.AUTO:
        return next(name for name in providers.PREFERRED if providers.why_missing(providers.known(name)) is None)
    if reason := providers.why_missing(providers.known(name)):
        raise InputError(reason)
    return name


def unfit(manifest: Manifest, name: str) -> Iterator[Finding]:
    """A flavour that the provider cannot run."""
    if reason := providers.why_unfit(providers.known(name), manifest):
        what, _, do = reason.partition("; ")
        yield Finding("broken", what, "none of its nodes would run there", do)


def elsewhere(assignments: Mapping[str, Assignment], name: str) -> Iterator[Finding]:
    """Graphs of which the provider runs nothing, or not what takes the time."""
    ort_name = providers.known(name).ort_name
    for graph, found in assignments.items():
        others = found.elsewhere(ort_name)
        if sum(others.values()) == found.total:
            yield Finding(
                "broken",
                f"provider {name} runs none of the {found.total} nodes of {graph}",
                "all of it runs on the CPU, and is copied there and back",
                "export the bundle in another flavour (`--flavour`), or use --provider cpu",
            )
        elif slow := {op: count for op, count in others.items() if op.rpartition(".")[2] in COMPUTE}:
            listed = ", ".join(f"{count} {op}" for op, count in slow.items())
            yield Finding(
                "advice",
                f"provider {name} leaves {listed} of {graph} to another one",
                "these take the time, and what they read and write is copied between devices in every step",
                "export the bundle in another flavour or precision, or use --provider cpu",
            )

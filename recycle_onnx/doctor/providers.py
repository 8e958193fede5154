"""Execution providers: those that are here, why others are not, and whether one suits a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from recycle_onnx.bundle import Manifest
from recycle_onnx.doctor.assignment import Assignment
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.ort import providers
from recycle_onnx.runtime.ort.provider_table import PREFERRED, PROVIDERS

COMPUTE = ("MatMul", "MatMulNBits", "FusedMatMul", "Gemm", "Attention", "GroupQueryAttention")
"""Operators whose place decides the speed; shapes and masks may be computed anywhere."""


@dataclass(frozen=True)
class ProviderState:
    """A provider by our name and ONNX Runtime's; `why_not` says why it cannot be used, or is None.

    `tested` says how far we have seen it ourselves.
    """

    name: str
    onnxruntime_name: str
    why_not: str | None
    package: str
    flavours: tuple[str, ...]
    tested: str


def find() -> list[ProviderState]:
    """List all providers that we know, whether they are here or not."""
    return [
        ProviderState(p.name, p.ort_name, providers.why_missing(p), p.package, p.flavours, p.tested)
        for p in PROVIDERS.values()
    ]


def candidates(name: str) -> list[str]:
    """Return the provider of this name; for `auto` those that are here, the best one first.

    Raises:
        InputError: it is not known, or not here.
    """
    if name == providers.AUTO:
        return [name for name in PREFERRED if providers.why_missing(PROVIDERS[name]) is None]
    if reason := providers.why_missing(providers.known(name)):
        raise InputError(reason)
    return [name]


def choose(manifest: Manifest, names: list[str]) -> tuple[str, list[Finding]]:
    """Choose the best of these providers that runs the bundle well; also return findings on those before it.

    Where none does, the last one that can run it at all; where none can, it is broken.
    """
    able = [name for name in names if providers.why_unfit(providers.known(name), manifest) is None]
    well = [name for name in able if providers.why_slow(providers.known(name), manifest) is None]
    chosen = (well or able[::-1] or names)[0]
    passed = names if not well else names[: names.index(chosen)]
    return chosen, [finding for name in passed for finding in _unsuited(manifest, name, broken=not able)]


def _unsuited(manifest: Manifest, name: str, *, broken: bool) -> Iterator[Finding]:
    provider = providers.known(name)
    for reason, why in (
        (providers.why_unfit(provider, manifest), "none of its nodes would run there"),
        (providers.why_slow(provider, manifest), "attention and copies between devices would cost more than is gained"),
    ):
        if reason:
            what, _, do = reason.partition("; ")
            yield Finding("broken" if broken else "advice", what, why, do)


def elsewhere(assignments: Mapping[str, Assignment], names: Mapping[str, str]) -> Iterator[Finding]:
    """Yield graphs of which their provider runs nothing, or not what takes the time."""
    for graph, assignment in assignments.items():
        name = names[graph]
        others = assignment.elsewhere(providers.known(name).ort_name)
        if sum(others.values()) == assignment.total:
            yield Finding(
                "broken",
                f"provider {name} runs none of the {assignment.total} nodes of {graph}",
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

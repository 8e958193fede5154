"""An examination of this machine, and of a bundle on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from recycle_onnx.bundle import check_is_bundle
from recycle_onnx.doctor import bundle as bundles
from recycle_onnx.doctor import machine, providers, telemetry, versions
from recycle_onnx.doctor.bundle import BundleReport, How
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.doctor.providers import ProviderState
from recycle_onnx.doctor.telemetry import Telemetry
from recycle_onnx.doctor.versions import Versions
from recycle_onnx.machine import bandwidth
from recycle_onnx.machine.bandwidth import Bandwidth
from recycle_onnx.machine.machine import Machine
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.ort.providers import options_of_module, register_library
from recycle_onnx.runtime.ort.sessions import check_threads


@dataclass(frozen=True)
class DoctorReport:
    """The results of an examination; `findings` say what is wrong and what to do, `broken` ones first.

    `provider` is the one that suits the bundle best, or without a bundle this machine.
    """

    versions: Versions
    machine: Machine
    bandwidth: Bandwidth
    providers: list[ProviderState]
    provider: str
    telemetry: Telemetry
    bundle: BundleReport | None
    findings: list[Finding]

    @property
    def broken(self) -> bool:
        """Whether anything found is more than advice."""
        return any(finding.level == "broken" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the bundle's findings are among the others."""
        plain = asdict(self)
        if plain["bundle"] is not None:
            del plain["bundle"]["findings"]
        return {"broken": self.broken, **plain}


def examine(
    bundle: str | PathLike[str] | None = None,
    *,
    provider: str = "auto",
    recycler_provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    recycler_provider_options: Mapping[str, str] | None = None,
    provider_libraries: Mapping[str, str | PathLike[str]] | None = None,
    threads: int | None = None,
    session_config: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> DoctorReport:
    """Examine this machine for about a second, and with a bundle for some five seconds more.

    Args:
        bundle: a folder that `recycle-onnx export` wrote.
        provider: where to run it; `auto` for the best one here. This and the next four are as `load` takes them.
        recycler_provider: where to run its module, if not there too.
        provider_options: what the provider takes.
        recycler_provider_options: the same for the module's provider, if it has one of its own.
        provider_libraries: files of plug-in providers.
        threads: threads of each session, None for one a physical core.
        session_config: settings of ONNX Runtime's sessions that an application gives in the place of ours, by name.
        progress: called with what is done, of how much, and what comes now.

    Raises:
        InputError: not a bundle, a provider that is unknown or not here or does not know an option, options without
            their provider, or threads out of range.
    """
    for name, file in (provider_libraries or {}).items():
        register_library(name, file)
    own_options = options_of_module(recycler_provider, recycler_provider_options)
    names = providers.candidates(provider)
    check_threads(threads)
    if bundle is not None:
        check_is_bundle(Path(bundle))
    progress(0, 1, "measuring how fast memory is read")
    here = Machine.this()
    speed = bandwidth.measure(here.processors.useful_threads, here.memory.free_bytes)
    installed, sends = versions.find(), telemetry.find()
    others = names if recycler_provider is None else providers.candidates(recycler_provider)
    options = provider_options or {}
    how = How(
        names, options, others, options if recycler_provider is None else own_options, threads, session_config or {}
    )
    examined = None if bundle is None else bundles.examine(Path(bundle), how, here, speed, progress)
    about = (*versions.findings(installed), *machine.findings(here, threads), *telemetry.findings(sends))
    findings = _broken_first([*about, *(examined.findings if examined else [])])
    chosen = examined.provider if examined else names[0]
    return DoctorReport(installed, here, speed, providers.find(), chosen, sends, examined, findings)


def _broken_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.level != "broken")

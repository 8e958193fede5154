"""An examination of this machine, and of a bundle on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

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
from recycle_onnx.runtime.ort.placing import Placing
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
    threads: int | None = None,
    session_config: Mapping[str, str] | None = None,
    progress: Progress = silent,
    **placing: Unpack[Placing],
) -> DoctorReport:
    """Examine this machine for about a second, and with a bundle for some five seconds more.

    Args:
        bundle: a folder that `recycle-onnx export` wrote.
        threads: threads of each session, None for one a physical core.
        session_config: settings of ONNX Runtime's sessions that an application gives in the place of ours, by name.
        progress: called with what is done, of how much, and what comes now.
        placing: where to run it, with the keywords of `recycle_onnx.load`; `provider` is `auto` for the best one here
            unless another one is named.

    Raises:
        InputError: not a bundle, a provider that is unknown or not here or does not know an option, options without
            their provider, or threads out of range.
    """
    for name, file in (placing.get("provider_libraries") or {}).items():
        register_library(name, file)
    how = _how(placing, threads, session_config or {})
    check_threads(threads)
    if bundle is not None:
        check_is_bundle(Path(bundle))
    progress(0, 1, "measuring how fast memory is read")
    here = Machine.this()
    speed = bandwidth.measure(here.processors.useful_threads, here.memory.free_bytes)
    installed, sends = versions.find(), telemetry.find()
    examined = None if bundle is None else bundles.examine(Path(bundle), how, here, speed, progress)
    about = (*versions.findings(installed), *machine.findings(here, threads), *telemetry.findings(sends))
    findings = _broken_first([*about, *(examined.findings if examined else [])])
    chosen = examined.provider if examined else how.providers[0]
    return DoctorReport(installed, here, speed, providers.find(), chosen, sends, examined, findings)


def _how(placing: Placing, threads: int | None, session_config: Mapping[str, str]) -> How:
    """Return the providers to choose from: the module's are the full model's, unless it has its own."""
    module = placing.get("recycler_provider")
    own = options_of_module(module, placing.get("recycler_provider_options"))
    names, options = providers.candidates(placing.get("provider", "auto")), placing.get("provider_options") or {}
    if module is None:
        return How(names, options, names, options, threads, session_config)
    return How(names, options, providers.candidates(module), own, threads, session_config)


def _broken_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.level != "broken")

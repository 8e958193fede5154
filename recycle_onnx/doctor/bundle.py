"""Whether a bundle is whole, fits this machine, and gives here what it gives elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.contract import Kind
from recycle_onnx.doctor import assignment, needs, providers, self_test, spinning
from recycle_onnx.doctor.assignment import Assignment
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.doctor.needs import Needs
from recycle_onnx.doctor.self_test import SelfTest
from recycle_onnx.doctor.spinning import Spinning
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.machine.bandwidth import Bandwidth
from recycle_onnx.machine.machine import Machine
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort import providers as runtime_providers
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.providers import Place
from recycle_onnx.runtime.ort.sessions import open_session, session_options


@dataclass
class BundleReport:
    """The results of a bundle's examination; what could not be examined is None or empty."""

    folder: str
    provider: str
    recycler_provider: str
    whole: bool = False
    flavour: str | None = None
    precision: str | None = None
    needs: Needs | None = None
    assignments: dict[str, Assignment] = field(default_factory=dict)
    spinning: Spinning | None = None
    self_test: SelfTest | None = None
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class How:
    """The providers to choose from and their options, the same of the module, and the sessions' threads and settings.

    `session_config` are settings of ONNX Runtime's sessions that take the place of ours.
    """

    providers: list[str]
    options: Mapping[str, str]
    recycler_providers: list[str]
    recycler_options: Mapping[str, str]
    threads: int | None
    session_config: Mapping[str, str]


def examine(folder: Path, how: How, machine: Machine, bandwidth: Bandwidth, progress: Progress) -> BundleReport:
    """Check files, room, provider, placement, spinning and results, in this order, as far as each allows the next.

    Raises:
        InputError: an option that a provider does not know.
    """
    report = BundleReport(str(folder), how.providers[0], how.recycler_providers[0])
    bundle = _open(folder, report, progress)
    if bundle is None:
        return report
    manifest = bundle.manifest
    report.whole, report.flavour, report.precision = True, manifest.flavour, manifest.precision
    report.needs = needs.find(manifest, bandwidth)
    report.provider, unsuited = providers.choose(manifest, how.providers)
    report.recycler_provider, others = providers.choose(manifest, how.recycler_providers)
    report.findings += [*needs.findings(report.needs, machine.memory), *dict.fromkeys([*unsuited, *others])]
    if not any(finding.level == "broken" for finding in report.findings):
        _run(bundle, how, machine, report, progress)
    return report


def _open(folder: Path, report: BundleReport, progress: Progress) -> Bundle | None:
    try:
        return Bundle.open(folder, verify=True, progress=lambda *of: progress(of[0], of[1], f"checking files: {of[2]}"))
    except InputError as error:
        report.findings.append(_refused(error))
        return None


def _run(bundle: Bundle, how: How, machine: Machine, report: BundleReport, progress: Progress) -> None:
    opener = _Opener(how.session_config)
    place = runtime_providers.place(report.provider, how.options, bundle.manifest)
    recycler_place = runtime_providers.place(report.recycler_provider, how.recycler_options, bundle.manifest)
    try:
        progress(0, 3, "running the graphs on the CPU as they were written")
        expected = _expected(bundle, how, report)
        progress(1, 3, f"loading them for {report.provider}")
        with Model(bundle, place, how.threads, opener, recycler_provider=recycler_place) as model:
            asked = {kind: assignment.of_session(session) for kind, session in opener.sessions.items()}
            report.assignments = {kind: answer for kind, answer in asked.items() if answer is not None}
            names = {"full": report.provider, "recycler": report.recycler_provider}
            report.findings += providers.elsewhere(report.assignments, names)
            report.spinning = _spinning(model, opener.sessions, machine)
            progress(2, 3, "comparing texts")
            report.self_test = self_test.run(model, opener.sessions, expected)
    except InputError as error:
        report.findings.append(_refused(error))
        return
    except Exception as error:  # of ONNX Runtime and of a provider's driver: they share no public base class
        report.findings.append(_cannot_run(bundle.manifest, report.provider, error))
        return
    progress(3, 3, "done")
    report.findings += [*spinning.findings(report.spinning), *self_test.findings(report.self_test)]


def _expected(bundle: Bundle, how: How, report: BundleReport) -> list[Floats] | None:
    """Return the CPU's logits; None where it cannot run what another provider may."""
    try:
        return self_test.on_the_cpu(bundle, how.threads)
    except RecycleError as error:
        if report.provider == CPU:
            raise
        what, why = f"the CPU cannot run this bundle ({error})", "there is nothing to compare the provider with"
        report.findings.append(Finding("advice", what, why, "export a float32 bundle to compare with, or trust it"))
        return None


def _refused(error: InputError) -> Finding:
    """Make a finding of an error that `load` would raise."""
    what, _, do = str(error).rpartition("; ")
    why = "it is not what was exported: it does not load, or may write other texts"
    return Finding("broken", what or str(error), why, do if what else "copy the bundle again, or export it again")


def _cannot_run(manifest: Manifest, provider: str, error: Exception) -> Finding:
    return Finding(
        "broken",
        f"provider {provider!r} cannot run this bundle of flavour {manifest.flavour!r} in {manifest.precision}: "
        f"{' '.join(str(error).split())}",
        "a graph has operators or types that it has no kernels for, or its package or driver fails",
        "export the bundle in another flavour or precision, or use another --provider",
    )


class _Opener:
    """An opener of sessions as `load` opens them, but with the application's settings; it keeps them."""

    def __init__(self, config: Mapping[str, str]) -> None:
        self.config = config
        self.sessions: dict[Kind, ort.InferenceSession] = {}

    def __call__(self, bundle: Bundle, kind: Kind, provider: Place, threads: int | None) -> ort.InferenceSession:
        options = session_options(threads)
        for name, value in (*self.config.items(), assignment.RECORD):
            options.add_session_config_entry(name, value)
        spec = bundle.manifest.graphs[kind]
        self.sessions[kind] = open_session(bundle.graph(kind), spec, provider, threads, options)
        return self.sessions[kind]


def _spinning(model: Model, sessions: Mapping[Kind, ort.InferenceSession], machine: Machine) -> Spinning:
    spin = [kind for kind, session in sessions.items() if spinning.spins(session, machine.processors)]
    if "recycler" not in sessions:
        return Spinning([], None)  # nobody to take processors from
    decoder, prompt = model.decoder("verify"), [0]
    decoder.prefill(prompt)
    decoder.start_recycling(0)
    return Spinning(spin, spinning.turns_against_alone(decoder, 0))

"""An examination for people: tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recycle_onnx.cli.report import echo, shown
from recycle_onnx.cli.steps import HALVES, step_times
from recycle_onnx.doctor.bundle import BundleReport
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.doctor.needs import gigabytes
from recycle_onnx.doctor.report import DoctorReport
from recycle_onnx.machine.processors import Processors

Rows = list[tuple[str, str]]
STYLES = {"broken": "bold red", "advice": "yellow"}


def show(report: DoctorReport) -> None:
    """Print all sections, and what to change at the end."""
    console = Console()
    for title, rows in _sections(report):
        if console.is_terminal:
            console.print(_table(title, rows))
        else:
            echo("\n".join([title, *(f"  {name}: {value}" for name, value in rows), ""]))
    _show_findings(console, report.findings)


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=shown(title), show_header=False, title_justify="left", min_width=60)
    for name, value in rows:
        table.add_row(name, shown(value))
    return table


def _show_findings(console: Console, findings: list[Finding]) -> None:
    if not findings:
        console.print("nothing to change", highlight=False)
    for finding in findings:
        for name, text in ((finding.level, finding.what), ("why", finding.why), ("do", finding.do)):
            label = Text(f"{name}: ", style=STYLES.get(name, "dim"))
            console.print(label + shown(text), soft_wrap=True)


def _sections(report: DoctorReport) -> Iterator[tuple[str, Rows]]:
    yield "versions", _versions(report)
    yield "machine", _machine(report)
    yield "providers", [_provider(report, index) for index in range(len(report.providers))]
    if report.bundle:
        yield f"bundle {report.bundle.folder}", list(_bundle(report.bundle))


def _versions(report: DoctorReport) -> Rows:
    versions = report.versions
    packages = ", ".join(f"{name} {version}" for name, version in versions.onnxruntime_packages.items())
    return [
        ("recycle-onnx", versions.recycle_onnx),
        *versions.packages.items(),
        ("onnxruntime from", packages or "no package"),
        ("Python", versions.python),
        ("system", versions.system),
        ("ONNX Runtime's telemetry", report.telemetry.state),
    ]


def _machine(report: DoctorReport) -> Rows:
    machine, speed, memory = report.machine, report.bandwidth, report.machine.memory
    free = "unknown" if memory.free_bytes is None else gigabytes(memory.free_bytes)
    most = "unknown" if memory.most_bytes is None else gigabytes(memory.most_bytes)
    limit = " by a control group's limit" if memory.limit_bytes and memory.most_bytes == memory.limit_bytes else ""
    return [
        ("processor", machine.processor),
        ("instruction sets", ", ".join(machine.instructions) or "unknown"),
        ("training would be in", machine.training_precision),
        ("cores", _cores(machine.processors)),
        ("memory", f"{free} free of {most}{limit}"),
        ("huge pages", machine.huge_pages),
        ("memory is read at", f"{speed.one_thread_gb_s:.1f} GB/s by one thread, "
         f"{speed.all_threads_gb_s:.1f} GB/s by {speed.threads}"),
    ]  # fmt: skip


def _cores(processors: Processors) -> str:
    physical = "unknown" if processors.physical is None else str(processors.physical)
    quota = "" if processors.quota is None else f", a quota of {processors.quota:g} processors' time"
    return f"{physical} physical, {processors.logical} logical, {processors.allowed} allowed{quota}"


def _provider(report: DoctorReport, index: int) -> tuple[str, str]:
    provider = report.providers[index]
    if provider.why_not:
        return provider.name, provider.why_not.removeprefix(f"provider {provider.name!r} ")
    chosen = ", used" if provider.name == report.provider else ""
    return provider.name, f"here{chosen} (tested: {provider.tested}; flavours {', '.join(provider.flavours)})"


def _bundle(bundle: BundleReport) -> Iterator[tuple[str, str]]:
    yield "files", "as the manifest says" if bundle.whole else "altered or damaged"
    if bundle.flavour:
        module = "" if bundle.recycler_provider == bundle.provider else f", the module on {bundle.recycler_provider}"
        yield "graphs", f"flavour {bundle.flavour}, {bundle.precision}, on {bundle.provider}{module}"
    if needs := bundle.needs:
        yield "weights", gigabytes(needs.weights_bytes)
        caches = gigabytes(needs.cache_bytes)
        if (saved := needs.saved_cache_bytes) and saved > needs.cache_bytes:
            caches += f"; {gigabytes(saved)} in a server that saves prompts (`--prompt-cache-gb 0` saves none)"
        yield f"caches at {needs.context_length} tokens", caches
        yield "a full step reads", f"{gigabytes(needs.full_step_bytes)}: at most {needs.tokens_per_second:.0f} tokens/s"
    for graph, assignment in bundle.assignments.items():
        for name, operators in assignment.nodes.items():
            yield f"{HALVES[graph]} on {name}", f"{sum(operators.values())} nodes: {_operators(operators)}"
    if (spinning := bundle.spinning) and spinning.turns_against_alone is not None:
        who = f"those of {' and '.join(spinning.halves)} spin on" if spinning.halves else "they stop"
        cost = f"steps in turns cost {spinning.turns_against_alone:.2f}x steps of each half alone"
        yield "threads between runs", f"{who}; {cost}"
    if test := bundle.self_test:
        yield "steps in ms", f"{step_times(test.step_ms)}: {1e3 / test.step_ms['full']:.0f} tokens/s by `full`"
        for half, apart in test.differences.items():
            yield f"{HALVES[half]} against the CPU", f"{apart:.1e} of the largest logit (allowed {test.tolerance:.0e})"
        if test.same_tokens is not None:
            yield "verify against full", f"{test.same_tokens} of {test.tokens} tokens alike ({test.lossless})"


def _operators(operators: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.items())

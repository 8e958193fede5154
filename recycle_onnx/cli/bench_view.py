"""What `bench` shows of its measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from recycle_onnx.cli.steps import step_times

if TYPE_CHECKING:
    from recycle_onnx.bench.conditions import Conditions
    from recycle_onnx.bench.run import Measurement


def show(results: Sequence[Measurement], conditions: Conditions, note: str | None) -> None:
    """Show the machine, a table for each context and number of threads, and what to do about it."""
    from recycle_onnx.bench.run import verdict

    console = Console()
    console.print(f"{conditions.cpu}, {conditions.threads} processors, ONNX Runtime {conditions.onnxruntime}, "
                  f"reads {conditions.read_bandwidth_gb_s:.0f} GB/s", highlight=False)  # fmt: skip
    if note:
        console.print(note, highlight=False, soft_wrap=True)
    for title, group in _settings(results):
        console.print(_table(title, group))
        console.print(_steps(group[0]), highlight=False, soft_wrap=True)
    console.print(verdict(results), highlight=False, soft_wrap=True)


def _settings(results: Sequence[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    """Yield the measurements of each context and number of threads, with a heading."""
    for (threads, context), group in groupby(results, key=lambda r: (r.threads, r.context)):
        yield f"threads {threads or 'default'}, context {context}", list(group)


def _table(title: str, results: Sequence[Measurement]) -> Table:
    columns = ("strategy", "tokens/s", "x full", "predicted", "tokens/run", "accepted")
    table = Table(*columns, title=f"{title} (medians, 95 % intervals)", title_justify="left")
    for r in results:
        table.add_row(
            r.strategy + (f" ({r.label})" if r.label else ""),
            f"{r.decode_tokens_per_second:.1f} ({r.interval[0]:.1f} to {r.interval[1]:.1f})",
            f"{r.measured_speedup:.2f} ({r.speedup_interval[0]:.2f} to {r.speedup_interval[1]:.2f})",
            "" if r.predicted_speedup is None else f"{r.predicted_speedup:.2f}",
            f"{r.tokens_per_full_run:.2f}",
            "" if r.acceptance_rate is None else f"{r.acceptance_rate:.0%}",
        )
    return table


def _steps(full: Measurement) -> str:
    """Say what steps cost, and how much of the memory's speed a full step uses."""
    return (
        f"steps in ms: {step_times(full.step_ms)}; weights read at {full.weights_gb_per_s:.1f} GB/s\n"
        f"prompt {full.prefill_tokens_per_second:.0f} tokens/s, first token after "
        f"{1e3 * full.time_to_first_token_s:.1f} ms, loaded in {full.load_s:.2f} s\n"
        f"{full.memory}"
    )

"""`recycle-onnx bench --prompts`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.cli.report import as_json, progress
from recycle_onnx.prompts import Prompt

if TYPE_CHECKING:
    from recycle_onnx.bench.answers import AnswerMeasurement, AnswerOptions


def report_answers(bundle: Path, prompts: Sequence[Prompt], options: AnswerOptions, json_: bool) -> None:
    """Measure `bundle` on answers, and print it."""
    from recycle_onnx.bench.answers import bench_answers, to_json
    from recycle_onnx.bench.conditions import Conditions

    with progress("measuring") as update:
        results = bench_answers(bundle, prompts, options, update)
    report = to_json(results, Conditions.here())
    if json_:
        click.echo(as_json(report))
        return
    for threads, group in groupby(results, key=lambda result: result.threads):
        Console().print(_table(threads, list(group)))
    Console().print(report["verdict"], highlight=False, soft_wrap=True)


def _table(threads: int | None, results: Sequence[AnswerMeasurement]) -> Table:
    first = results[0]
    how = f"sampled at {first.temperature:g}" if first.temperature else "greedy"
    title = f"threads {threads or 'default'}, {first.answers} answers, {how} (medians, 95 % intervals)"
    columns = ("strategy", "tokens/s", "x full", "tokens/run", "accepted", "same answer")
    table = Table(*columns, title=title, title_justify="left")
    for r in results:
        table.add_row(
            r.strategy,
            f"{r.decode_tokens_per_second:.1f} ({r.interval[0]:.1f} to {r.interval[1]:.1f})",
            f"{r.measured_speedup:.2f} ({r.speedup_interval[0]:.2f} to {r.speedup_interval[1]:.2f})",
            f"{r.tokens_per_full_run:.2f}",
            "" if r.acceptance_rate is None else f"{r.acceptance_rate:.0%}",
            f"{r.identical:.0%}",
        )
    return table

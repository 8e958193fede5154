"""Steps of one bundle with and without its weights in huge pages (Linux).

    python benchmarks/huge_pages.py BUNDLE [--threads 1] [--context 128] [--pairs 6] [--rounds 40]

Each measurement is a process of its own, with and without in turns: memory that a process has moved once stays fit for
huge pages, so that a second model in it would have them too. Each line is the median time of a step with huge pages as
a part of that without, over all pairs of processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from threading import enumerate as running
from unittest.mock import patch

import click

import recycle_onnx
from recycle_onnx.bench.steps import StepTimer
from recycle_onnx.machine.huge_pages import THREAD
from recycle_onnx.runtime.ort import sessions

Medians = dict[str, float]
"""Milliseconds by kind of step."""


def measured(bundle: Path, huge: bool, threads: int, context: int, rounds: int) -> Medians:
    """Load the bundle with or without huge pages, and time its steps."""
    with nullcontext() if huge else patch.object(sessions, "in_huge_pages", nullcontext):
        model = recycle_onnx.load(bundle, threads=threads, fixed_threads=True)
    for thread in running():
        if thread.name == THREAD:
            thread.join()
    timer = StepTimer(model, [1 + index % 1000 for index in range(context)])
    for _ in range(rounds):
        timer.round()
    return {kind: statistics.median(times) for kind, times in timer.samples.items()}


def in_a_process(huge: bool) -> Medians:
    """Measure in a process of its own, with the options of this one."""
    command = [sys.executable, *sys.argv, "--only", "with" if huge else "without"]
    medians: Medians = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return medians


@click.command()
@click.argument("bundle", type=Path)
@click.option("--threads", default=1, show_default=True)
@click.option("--context", default=128, show_default=True)
@click.option("--pairs", default=6, show_default=True, help="Of processes.")
@click.option("--rounds", default=40, show_default=True, help="Of steps in a process.")
@click.option("--only", type=click.Choice(["with", "without"]), hidden=True)
def main(bundle: Path, threads: int, context: int, pairs: int, rounds: int, only: str | None) -> None:
    """Measure BUNDLE against itself."""
    if only is not None:
        click.echo(json.dumps(measured(bundle, only == "with", threads, context, rounds)))
        return
    ratios: dict[str, list[float]] = {}
    for _ in range(pairs):
        without, own = in_a_process(False), in_a_process(True)
        for kind, time in own.items():
            ratios.setdefault(kind, []).append(time / without[kind])
    for kind, values in ratios.items():
        click.echo(f"{kind}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()

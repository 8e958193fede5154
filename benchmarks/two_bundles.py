"""Steps of two bundles of one model in turns: flavours, precisions, quantizations against each other.

    python benchmarks/two_bundles.py BUNDLE BASELINE [--threads 2] [--context 128] [--rounds 60]
    python benchmarks/two_bundles.py --shape tinyllama-1.1b --precision int4   # the flavours standard and ort

Median milliseconds of every kind of step, and BUNDLE's time as a part of BASELINE's (paired by round; each is loaded
first in half of the rounds).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter

import click
from paired_steps import paired_steps, report

import recycle_onnx
from recycle_onnx.bench.bundles import random_bundle
from recycle_onnx.bench.steps import StepTimer


def load(bundle: Path, threads: int | None, context: int) -> StepTimer:
    """Load a bundle and say how long that took."""
    started = perf_counter()
    model = recycle_onnx.load(bundle, threads=threads, fixed_threads=True)
    click.echo(f"{bundle.name}: loaded in {perf_counter() - started:.1f} s")
    return StepTimer(model, [1 + index % 1000 for index in range(context)])


@click.command()
@click.argument("bundles", type=Path, nargs=-1)
@click.option("--shape", help="Instead of two bundles: random weights in this shape, in both flavours.")
@click.option("--precision", default="int4", show_default=True, help="Of the shape.")
@click.option("--module-layers", default=2, show_default=True, help="Of the shape.")
@click.option("--threads", type=int)
@click.option("--context", default=128, show_default=True)
@click.option("--rounds", default=60, show_default=True)
def main(
    bundles: tuple[Path, ...],
    shape: str | None,
    precision: str,
    module_layers: int,
    threads: int | None,
    context: int,
    rounds: int,
) -> None:
    """Measure BUNDLE against BASELINE."""
    if shape is not None:
        bundles = tuple(
            random_bundle(shape, precision, module_layers, 64, flavour=name) for name in ("standard", "ort")
        )
    if len(bundles) != 2:
        raise click.UsageError("expected a bundle and a baseline, or --shape")
    timers = [partial(load, bundle, threads, context) for bundle in bundles]
    report(paired_steps(*timers, rounds))


if __name__ == "__main__":
    main()

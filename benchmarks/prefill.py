"""Reading prompts of several lengths, by several bundles in turns.

    python benchmarks/prefill.py BASELINE BUNDLE... [--lengths 512,2048,4096] [--threads 1] [--rounds 5] [--wall]

Each round reads the same random tokens with every bundle, the module's reading included where it has one. For every
length: median seconds of processor time, and the time that BUNDLE takes as a part of BASELINE's (medians of ratios,
paired by round). With `--wall` elapsed time is taken, for several threads on a quiet machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import recycle_onnx
from recycle_onnx.runtime.model import Model


def reading(model: Model, ids: list[int], clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds in which a fresh decoder reads a prompt: the full model's, and the module's."""
    decoder = model.decoder("auto")
    started = clock()
    decoder.prefill(ids)
    read = clock()
    if decoder.recycler is not None:
        decoder.start_recycling(ids[0])
    return read - started, clock() - read


@click.command()
@click.argument("bundles", type=Path, nargs=-1, required=True, metavar="BASELINE BUNDLE...")
@click.option("--lengths", default="512,2048,4096", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--wall", is_flag=True, help="Take elapsed time.")
def main(bundles: tuple[Path, ...], lengths: str, threads: int, rounds: int, wall: bool) -> None:
    """Measure each BUNDLE against BASELINE."""
    models = [recycle_onnx.load(path, threads=threads, fixed_threads=True) for path in bundles]
    clock = time.perf_counter if wall else time.process_time
    for length in map(int, lengths.split(",")):
        ids = np.random.default_rng(0).integers(100, 1000, size=length).tolist()
        samples: dict[int, list[tuple[float, float]]] = {place: [] for place in range(len(models))}
        for number in range(rounds):
            places = list(samples) if number % 2 else list(reversed(samples))
            for place in places:
                samples[place].append(reading(models[place], ids, clock))
        for place, path in enumerate(bundles):
            full, module = (statistics.median(part) for part in zip(*samples[place], strict=True))
            ratios = [sum(own) / sum(base) for own, base in zip(samples[place], samples[0], strict=True)]
            click.echo(
                f"{length} tokens, {path.name}: full model {full:.2f} s, module {module:.3f} s, "
                f"{statistics.median(ratios):.2f} of {bundles[0].name}'s ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()

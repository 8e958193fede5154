"""Full steps behind texts of several lengths, on caches of floats and of integers in turns.

    python benchmarks/attention.py BUNDLE BASELINE [--contexts 128,2048,4096] [--threads 2] [--rounds 30] [--cpu]

Caches hold random rows, which cost as much as a text's own. For every length: median milliseconds of a step on one
token, on two and on four, what two cost beside one (T2/T1), and how many times as fast BUNDLE is as BASELINE (medians
of ratios, paired by round). With `--cpu` processor time is taken, which a busy machine changes less: for one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import recycle_onnx
from recycle_onnx.runtime.decoding.half import Half

TOKENS = (1, 2, 4)
"""Of a step."""
Samples = dict[tuple[int, int], list[float]]
"""Milliseconds by bundle, 0 or 1, and tokens."""


def fill(half: Half, length: int) -> None:
    """Let a half have read `length` random tokens."""
    random, spec = np.random.default_rng(0), half.spec
    shape = (spec.num_kv_heads, length, spec.head_dim)
    ids = random.integers(spec.vocab_size, size=length).tolist()
    half.restore(ids, [(64 * random.random(shape, np.float32)).astype(dtype) for dtype in spec.cache_types()])


def timed(halves: list[Half], length: int, rounds: int, clock: Callable[[], float]) -> Samples:
    """Time steps of both halves in turns; the first round, which allocates, is left out."""
    samples: Samples = {(place, count): [] for place in range(len(halves)) for count in TOKENS}
    for number in range(rounds + 1):
        for count in TOKENS:
            for place in range(len(halves)) if number % 2 else reversed(range(len(halves))):
                halves[place].crop(length)
                started = clock()
                halves[place].step([1] * count, keep=count)
                if number:
                    samples[place, count].append(1e3 * (clock() - started))
    return samples


def ratio(samples: Samples, over: tuple[int, int], under: tuple[int, int]) -> float:
    """Return the median of ratios, paired by round."""
    return statistics.median(a / b for a, b in zip(samples[over], samples[under], strict=True))


@click.command()
@click.argument("bundle", type=Path)
@click.argument("baseline", type=Path)
@click.option("--contexts", default="128,2048,4096", show_default=True)
@click.option("--threads", type=int)
@click.option("--rounds", default=30, show_default=True)
@click.option("--cpu", is_flag=True, help="Take processor time.")
def main(bundle: Path, baseline: Path, contexts: str, threads: int | None, rounds: int, cpu: bool) -> None:
    """Measure BUNDLE against BASELINE."""
    models = [recycle_onnx.load(path, threads=threads, fixed_threads=True) for path in (bundle, baseline)]
    halves = [model.decoder("full").full for model in models]
    for path, half in zip((bundle, baseline), halves, strict=True):
        click.echo(f"{path.name}: {half.spec.row_bytes / 1000:.1f} kB a token in the full model's caches")
    for length in map(int, contexts.split(",")):
        for half in halves:
            half.crop(0)
            fill(half, length)
        samples = timed(halves, length, rounds, time.process_time if cpu else time.perf_counter)
        steps = (" / ".join(f"{statistics.median(samples[place, count]):.2f}" for count in TOKENS) for place in (0, 1))
        growth = (ratio(samples, (place, 2), (place, 1)) for place in (0, 1))
        faster = (ratio(samples, (1, count), (0, count)) for count in TOKENS)
        click.echo(
            f"context {length}: {' against '.join(steps)} ms; T2/T1 {' against '.join(f'{g:.2f}' for g in growth)}; "
            f"{' / '.join(f'{f:.2f}' for f in faster)} times as fast"
        )


if __name__ == "__main__":
    main()

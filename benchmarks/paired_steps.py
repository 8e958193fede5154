"""Steps of two loaded models in turns, with either of them loaded first in half of the rounds.

The second model finds memory that loading the first has freed, and that alone makes its steps up to 10 % faster or
slower: one order of loading is not enough for a comparison.
"""

from __future__ import annotations

import gc
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

import click

from recycle_onnx.bench.run import median_interval
from recycle_onnx.bench.steps import StepTimer

Samples = dict[str, list[tuple[float, float]]]
"""By kind of step: pairs of milliseconds, of the first model and of the second one right after or before."""


def paired_steps(first: Callable[[], StepTimer], second: Callable[[], StepTimer], rounds: int) -> Samples:
    """Load both twice, in either order, and time half of the rounds each time."""
    samples: Samples = defaultdict(list)
    for order in ((first, second), (second, first)):
        measured = _in_turns([load() for load in order], max(1, rounds // 2))
        for kind, times in measured.items():
            samples[kind] += [pair if order[0] is first else pair[::-1] for pair in times]
    return samples


def _in_turns(timers: Sequence[StepTimer], rounds: int) -> Samples:
    gc.disable()
    for _ in range(rounds):
        for timer in timers:
            timer.round()
    gc.enable()
    return {kind: list(zip(times, timers[1].samples[kind], strict=True)) for kind, times in timers[0].samples.items()}


def report(samples: Samples) -> None:
    """Print medians, and the time of the first as a part of the second's, with an interval of 95 %."""
    for kind, pairs in samples.items():
        ratios = [own / other for own, other in pairs]
        low, high = median_interval(ratios)
        own, other = (statistics.median(times) for times in zip(*pairs, strict=True))
        click.echo(
            f"{kind}: {own:.2f} ms against {other:.2f} ms: {statistics.median(ratios):.2f} of the time "
            f"({low:.2f} to {high:.2f})"
        )

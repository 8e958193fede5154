"""What Python costs beside the graphs: microseconds a cycle of `verify`, and time to first token against `full`.

    python benchmarks/overhead.py BUNDLE [--rounds N] [--tokens N]

A cycle is measured for greedy token ids, outside the two `run` calls; text decoding is left out.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click

import recycle_onnx
from recycle_onnx.runtime.decoding import half, strategies
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model

PROMPT = "Once upon a time, there was a little girl who lived near the sea. One day, she"


class TimedSession:
    """Passes on to the session, and adds up the time of its runs."""

    spent = 0.0

    def __init__(self, session: Any) -> None:
        self.session = session

    def io_binding(self) -> Any:
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        started = time.perf_counter()
        self.session.run_with_iobinding(binding, options)
        TimedSession.spent += time.perf_counter() - started


def cycles(model: Model, tokens: int) -> list[float]:
    """Microseconds of each cycle outside the two `run` calls."""
    decoder = model.decoder("verify")
    for part in (decoder.full, decoder.recycler):
        assert isinstance(part, half.Half)
        part.session = TimedSession(part.session)
    plan, counts = strategies.Plan("verify"), strategies.Counts()
    choices = strategies.run(plan, decoder, model.encode(PROMPT), Sampling(), tokens, counts)
    microseconds = []
    next(choices)
    mark, runs = time.perf_counter(), TimedSession.spent
    for choice in choices:
        if choice.recycled:
            continue
        now = time.perf_counter()
        microseconds.append(1e6 * ((now - mark) - (TimedSession.spent - runs)))
        mark, runs = time.perf_counter(), TimedSession.spent
    return microseconds[2:]


def first_token(model: Model, strategy: str) -> float:
    """Seconds until the first token is there."""
    generation = model.stream(PROMPT, strategy=strategy, max_new_tokens=4)
    next(generation)
    return generation.result.stats.time_to_first_token_s


@click.command()
@click.argument("bundle", type=Path)
@click.option("--rounds", default=20, show_default=True)
@click.option("--tokens", default=128, show_default=True, help="New tokens of each text.")
def main(bundle: Path, rounds: int, tokens: int) -> None:
    """Measure BUNDLE."""
    model = recycle_onnx.load(bundle, fixed_threads=True)
    spent = [value for _ in range(rounds) for value in cycles(model, tokens)]
    first = [(first_token(model, "verify"), first_token(model, "full")) for _ in range(10 * rounds)]
    ratio = statistics.median(a for a, _ in first) / statistics.median(b for _, b in first)
    click.echo(f"Python a cycle: {statistics.median(spent):.1f} us; time to first token: {ratio:.3f}x full's")


if __name__ == "__main__":
    main()

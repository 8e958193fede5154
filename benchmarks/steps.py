"""What each kind of step costs, what a cycle costs beside them, and the speed of each strategy.

    python benchmarks/steps.py BUNDLE [--threads N] [--rounds N] [--context N] [--json]

Everything is interleaved in rounds and given as medians, so that a noisy machine disturbs all alike. T1 and T2 are full
steps on one and two tokens, R1 and R2 recycle steps on one and two rows. `arithmetic` is what these costs allow:
2·T1 / (T2 + R2) for `alternate`, and for `verify` at the measured acceptance rate.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import recycle_onnx
from recycle_onnx.runtime import half, strategies
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.sampling import Sampling

PROMPT = "Once upon a time, there was a little girl who lived near the sea. One day, she"
STEPS_A_ROUND = 20


def measure_steps(model: RecycleModel, context: int, times: dict[str, list[float]]) -> None:
    """One round of each kind of step, alternating between the kinds as decoding does."""
    decoder = model.decoder("verify")
    prompt = (model.encode(PROMPT) * context)[:context]
    decoder.prefill(prompt)
    decoder.start_recycling(5)
    assert decoder.recycler is not None
    kinds: dict[str, Callable[[], Any]] = {
        "T1": lambda: decoder.full_step([5], keep=1),
        "R1": lambda: decoder.recycle_step([5]),
        "T2": lambda: decoder.full_step([5, 6], keep=2),
        "R2": lambda: decoder.recycle_step([5, 6]),
    }
    for _ in range(STEPS_A_ROUND):
        for name, step in kinds.items():
            started = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - started))
            decoder.full.crop(context)
            decoder.recycler.crop(context)


def measure_overhead(model: RecycleModel, tokens: int) -> list[float]:
    """Microseconds of Python a cycle of `verify` outside the two `run` calls, for greedy token ids."""
    spent = 0.0

    class TimedSession:
        """Passes on to the session, and adds up the time of its runs."""

        def __init__(self, session: Any) -> None:
            self.session = session

        def io_binding(self) -> Any:
            return self.session.io_binding()

        def run_with_iobinding(self, binding: Any) -> None:
            nonlocal spent
            started = time.perf_counter()
            self.session.run_with_iobinding(binding)
            spent += time.perf_counter() - started

    decoder = model.decoder("verify")
    for part in (decoder.full, decoder.recycler):
        assert isinstance(part, half.Half)
        part.session = TimedSession(part.session)
    plan, counts = strategies.Plan("verify"), strategies.Counts()
    choices = strategies.run(plan, decoder, model.encode(PROMPT), Sampling(), tokens, counts)
    cycles = []
    next(choices)
    mark, runs = time.perf_counter(), spent
    for choice in choices:
        if choice.recycled:
            continue
        now = time.perf_counter()
        cycles.append(1e6 * ((now - mark) - (spent - runs)))
        mark, runs = time.perf_counter(), spent
    return cycles[2:]


@click.command()
@click.argument("bundle", type=Path)
@click.option("--threads", type=int)
@click.option("--rounds", default=15, show_default=True)
@click.option("--context", default=128, show_default=True, help="Tokens in the caches while steps are timed.")
@click.option("--tokens", default=128, show_default=True, help="New tokens of each text.")
@click.option("--json", "json_", is_flag=True)
def main(bundle: Path, threads: int | None, rounds: int, context: int, tokens: int, json_: bool) -> None:
    """Measure BUNDLE."""
    model = recycle_onnx.load(bundle, threads=threads)
    steps: dict[str, list[float]] = defaultdict(list)
    speed: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    overhead: list[float] = []
    rate = None
    model.stop_ids = frozenset()  # texts of equal length
    for _ in range(rounds):
        measure_steps(model, context, steps)
        for strategy in model.strategies:
            stats = model.generate(PROMPT, strategy=strategy, max_new_tokens=tokens).stats
            speed[strategy].append(stats.tokens_per_second)
            rate = stats.acceptance_rate if strategy == "verify" else rate
        for _ in range(5):
            for strategy in ("full", "verify"):
                generation = model.stream(PROMPT, strategy=strategy, max_new_tokens=4)
                next(generation)
                first[strategy].append(generation.result.stats.time_to_first_token_s)
        overhead += measure_overhead(model, tokens)
    t = {name: statistics.median(values) for name, values in steps.items()}
    tokens_per_second = {name: statistics.median(values) for name, values in speed.items()}
    found = {
        "steps_ms": t,
        "tokens_per_second": tokens_per_second,
        "speedup": {
            name: statistics.median(a / b for a, b in zip(values, speed["full"], strict=True))
            for name, values in speed.items()
        },
        "arithmetic": {
            "alternate": 2 * t["T1"] / (t["T2"] + t["R2"]),
            "verify": (1 + (rate or 0)) * t["T1"] / (t["T2"] + (rate or 0) * t["R2"] + (1 - (rate or 0)) * t["R1"]),
        },
        "acceptance_rate": rate,
        "python_us_a_cycle": statistics.median(overhead),
        "first_token_ratio": statistics.median(first["verify"]) / statistics.median(first["full"]),
    }
    if json_:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = {k: round(v, 3) for k, v in value.items()} if isinstance(value, dict) else value
        click.echo(f"{name}: {shown}")


if __name__ == "__main__":
    main()

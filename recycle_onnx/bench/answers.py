"""Answers to real prompts by every strategy, interleaved: how fast, and whether they are those of `full`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recycle_onnx.bench.conditions import Conditions
from recycle_onnx.bench.run import advice, median_interval
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.prompts import Prompt
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.generation import Lossless, Result
from recycle_onnx.runtime.loading import load
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.placing import Placing

SHORTEST = 8
"""Tokens of an answer that is long enough to time: the first steps of each kind also allocate."""
USUAL = ("full", "auto", "verify", "alternate", "lookup")
"""The order of the table's rows; `full` comes first, since all others are compared with it."""


@dataclass(frozen=True)
class AnswerOptions:
    """The measurements to make: every strategy on every prompt, `repeat` times, on each number of threads."""

    strategies: tuple[str, ...] = ()
    new_tokens: int = 64
    threads: tuple[int | None, ...] = (None,)
    repeat: int = 1
    chain: int = 1
    temperature: float = 0.0
    placing: Placing = field(default_factory=Placing)
    """What `recycle_onnx.load` is told of providers."""


@dataclass(frozen=True)
class AnswerMeasurement:
    """The measurement of one strategy on one number of threads.

    `answers` is how many are counted (those of 8 tokens or more under every strategy), `identical` the part of them
    that has just the tokens of `full`. Speeds are medians over answers, `measured_speedup` of ratios to `full` on the
    same prompt; intervals are the medians' 95 %. `tokens_per_full_run` and `acceptance_rate` are over all answers.
    """

    strategy: str
    threads: int | None
    precision: str
    temperature: float
    lossless: Lossless
    answers: int
    new_tokens: int
    identical: float
    decode_tokens_per_second: float
    interval: tuple[float, float]
    measured_speedup: float
    speedup_interval: tuple[float, float]
    acceptance_rate: float | None
    tokens_per_full_run: float
    providers: str


def bench_answers(
    bundle: Path, prompts: Sequence[Prompt], options: AnswerOptions, report: Progress = silent
) -> list[AnswerMeasurement]:
    """Let every strategy answer every prompt, to the answer's end or for `new_tokens`.

    Raises:
        InputError: an option out of range, a strategy that the bundle has not, or no answer long enough to be timed.
    """
    if options.new_tokens < SHORTEST:
        raise InputError(f"new-tokens is {options.new_tokens}; expected at least {SHORTEST} to time answers")
    if options.repeat < 1:
        raise InputError(f"repeat is {options.repeat}; expected at least 1")
    measurements = []
    for threads in options.threads:
        model = load(bundle, threads=threads, fixed_threads=True, **options.placing)
        names = ("full", *(name for name in options.strategies or _usual(model) if name != "full"))
        runs = _answer(model, prompts, names, options, report)
        measurements += [_summary(model, name, runs, options, threads) for name in names]
    return measurements


def _usual(model: Model) -> tuple[str, ...]:
    return tuple(name for name in USUAL if name in model.strategies)


def _answer(
    model: Model, prompts: Sequence[Prompt], names: Sequence[str], options: AnswerOptions, report: Progress
) -> list[dict[str, Result]]:
    """Return results by strategy for each prompt and round; the order turns around from one to the next."""
    texts = [prompt.ids(model.bundle.folder, model.tokenizer) for prompt in prompts] * options.repeat
    _generate(model, texts[0], names[0], options, 0)  # pages in the weights
    runs = []
    for index, ids in enumerate(texts):
        results = {}
        for name in names if index % 2 == 0 else reversed(names):
            report(index, len(texts), f"{name}, answer {index + 1} of {len(texts)}")
            results[name] = _generate(model, ids, name, options, index)
        runs.append(results)
    report(len(texts), len(texts), "done")
    long = [run for run in runs if all(result.stats.new_tokens >= SHORTEST for result in run.values())]
    if not long:
        raise InputError(f"no prompt has an answer of {SHORTEST} tokens; expected longer ones, to time them")
    return long


def _generate(model: Model, ids: list[int], name: str, options: AnswerOptions, seed: int) -> Result:
    chain = options.chain if name == "verify" else None
    return model.generate(
        ids, GREEDY, strategy=name, chain=chain, max_new_tokens=options.new_tokens, temperature=options.temperature,
        seed=seed,
    )  # fmt: skip


def _summary(
    model: Model, name: str, runs: list[dict[str, Result]], options: AnswerOptions, threads: int | None
) -> AnswerMeasurement:
    stats = [run[name].stats for run in runs]
    speeds, full = ([run[which].stats.tokens_per_second for run in runs] for which in (name, "full"))
    ratios = [own / alone for own, alone in zip(speeds, full, strict=True)]
    proposed = sum(stat.proposed for stat in stats)
    verified = any(stat.acceptance_rate is not None for stat in stats)
    return AnswerMeasurement(
        strategy=name,
        threads=threads,
        precision=model.bundle.manifest.precision,
        temperature=options.temperature,
        lossless=runs[0][name].lossless,
        answers=len(runs),
        new_tokens=sum(stat.new_tokens for stat in stats),
        identical=statistics.fmean(run[name].tokens == run["full"].tokens for run in runs),
        decode_tokens_per_second=statistics.median(speeds),
        interval=median_interval(speeds),
        measured_speedup=statistics.median(ratios),
        speedup_interval=median_interval(ratios),
        acceptance_rate=sum(stat.accepted for stat in stats) / proposed if verified and proposed else None,
        tokens_per_full_run=sum(s.new_tokens - 1 for s in stats) / max(1, sum(s.full_runs - 1 for s in stats)),
        providers=model.providers,
    )


def to_json(results: Sequence[AnswerMeasurement], conditions: Conditions) -> dict[str, object]:
    """Return machine and results as plain values."""
    return {
        "machine": asdict(conditions),
        "results": [asdict(result) for result in results],
        "verdict": advice([result for result in results if result.threads == results[0].threads]),
    }

"""Interleaved runs of strategies, thread counts and contexts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from recycle_onnx.bench import steps
from recycle_onnx.bench.conditions import Conditions
from recycle_onnx.bench.forced import forced
from recycle_onnx.bench.memory_parts import MemoryParts
from recycle_onnx.doctor.needs import full_step_bytes
from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.openings import openings_of
from recycle_onnx.machine.memory import peak_rss_bytes
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.generation import Result
from recycle_onnx.runtime.loading import load
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.placing import Placing

RESAMPLES = 2000
"""Draws from the measured values, of which the median's interval is made (the bootstrap)."""


@dataclass(frozen=True)
class Options:
    """The measurements to make: every combination of strategy, context and threads, `repeat` times in turns."""

    strategies: tuple[str, ...] = ()
    contexts: tuple[int, ...] = (128,)
    new_tokens: int = 64
    threads: tuple[int | None, ...] = (None,)
    repeat: int = 10
    chain: int = 1
    forced_acceptance: float | None = None
    placing: Placing = field(default_factory=Placing)
    """What `recycle_onnx.load` is told of providers."""


@dataclass(frozen=True)
class Measurement:
    """The measurement of one strategy, context and number of threads.

    Speeds are medians; `interval` is that median's 95 % interval.
    """

    strategy: str
    threads: int | None
    context: int
    precision: str
    decode_tokens_per_second: float
    interval: tuple[float, float]
    prefill_tokens_per_second: float
    time_to_first_token_s: float
    acceptance_rate: float | None
    tokens_per_full_run: float
    step_ms: dict[str, float]
    predicted_speedup: float | None
    measured_speedup: float
    speedup_interval: tuple[float, float]
    weights_gb_per_s: float
    memory: MemoryParts
    peak_rss_bytes: int | None
    load_s: float
    label: str | None
    providers: str = "cpu"


def bench(bundle: Path, options: Options, report: Progress = silent) -> list[Measurement]:
    """Measure `bundle`.

    Raises:
        InputError: an option out of range, or an unknown strategy.
    """
    _check(options)
    measurements = []
    for threads in options.threads:
        started = time.perf_counter()
        model = load(bundle, threads=threads, fixed_threads=True, **options.placing)
        load_s = time.perf_counter() - started
        model.stop_ids = frozenset()  # texts of equal length
        for context in options.contexts:
            measurements += _measure(_Case(model, context, threads, load_s), options, report)
    return measurements


def _check(options: Options) -> None:
    for name in ("new_tokens", "repeat"):
        if getattr(options, name) < 2:
            raise InputError(f"{name.replace('_', '-')} is {getattr(options, name)}; expected at least 2")
    if bad := [context for context in options.contexts if context < 2]:
        raise InputError(f"context is {bad[0]}; expected at least 2")
    if options.forced_acceptance is not None and not 0 <= options.forced_acceptance <= 1:
        raise InputError(f"forced-acceptance is {options.forced_acceptance}; expected 0 to 1")


@dataclass(frozen=True)
class _Case:
    """A loaded model, and what its strategies are compared under."""

    model: Model
    context: int
    threads: int | None
    load_s: float


def _measure(case: _Case, options: Options, report: Progress) -> list[Measurement]:
    model, context = case.model, case.context
    room = model.bundle.manifest.context_length - steps.MOST_TOKENS
    if context + options.new_tokens > room:
        raise InputError(f"context {context} and {options.new_tokens} new tokens do not fit the model's {room}")
    names = options.strategies or _usual(model, options)
    names = ("full", *(name for name in names if name != "full"))  # what all are compared with
    prompts = openings_of(model, context)
    timer = steps.StepTimer(model, prompts[0])
    results: dict[str, list[Result]] = {name: [] for name in names}
    for index in range(options.repeat):
        for name in names:
            report(index, options.repeat, f"{name}, context {context}, threads {case.threads or 'default'}")
            prompt = prompts[index % len(prompts)]
            results[name].append(_generate(model, prompt, name, options, seed=index))
            timer.round()
    report(options.repeat, options.repeat, f"context {context} done")
    step = timer.medians()
    speeds = {name: [result.stats.tokens_per_second for result in runs] for name, runs in results.items()}
    return [_summary(case, name, runs, speeds, step, options) for name, runs in results.items()]


def _usual(model: Model, options: Options) -> tuple[str, ...]:
    if options.forced_acceptance is not None:
        return ("full", "alternate", "verify")
    return tuple(name for name in ("full", "alternate", "verify", "lookup", "auto") if name in model.strategies)


def _generate(model: Model, prompt: list[int], name: str, options: Options, seed: int) -> Result:
    chain = options.chain if name == "verify" else None
    if name == "verify" and options.forced_acceptance is not None:
        return forced(model, prompt, options.chain, options.forced_acceptance, options.new_tokens, seed)
    return model.generate(prompt, GREEDY, strategy=name, chain=chain, max_new_tokens=options.new_tokens)


def _summary(
    case: _Case, name: str, runs: list[Result], speeds: dict[str, list[float]], step: dict[str, float], options: Options
) -> Measurement:
    manifest = case.model.bundle.manifest
    stats = [run.stats for run in runs]
    rates = [stat.acceptance_rate for stat in stats if stat.acceptance_rate is not None]
    rate = statistics.median(rates) if rates else None
    tokens_per_run = statistics.median((s.new_tokens - 1) / max(1, s.full_runs - 1) for s in stats)
    ratios = [own / full for own, full in zip(speeds[name], speeds["full"], strict=True)]
    rate_forced = options.forced_acceptance
    return Measurement(
        strategy=name,
        threads=case.threads,
        context=case.context,
        precision=manifest.precision,
        decode_tokens_per_second=statistics.median(speeds[name]),
        interval=median_interval(speeds[name]),
        prefill_tokens_per_second=statistics.median(case.context / s.time_to_first_token_s for s in stats),
        time_to_first_token_s=statistics.median(s.time_to_first_token_s for s in stats),
        acceptance_rate=rate,
        tokens_per_full_run=tokens_per_run,
        step_ms=step,
        predicted_speedup=steps.predicted_speedup(
            name,
            step,
            min(options.chain, manifest.longest_chain or options.chain),
            rate,
            tokens_per_run,
            one_run=manifest.longest_chain is not None,
        ),
        measured_speedup=statistics.median(ratios),
        speedup_interval=median_interval(ratios),
        weights_gb_per_s=full_step_bytes(manifest) / (1e-3 * step["full_1"]) / 1e9,
        memory=MemoryParts.of(manifest, case.context + options.new_tokens),
        peak_rss_bytes=peak_rss_bytes(),
        load_s=case.load_s,
        label=f"acceptance forced to {rate_forced}" if rate_forced is not None and name == "verify" else None,
        providers=case.model.providers,
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the median, by resampling with a fixed seed."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def verdict(results: Sequence[Measurement]) -> str:
    """Say in one line which strategy wins in the first setting, and what to do about it."""
    return advice([r for r in results if (r.threads, r.context) == (results[0].threads, results[0].context)])


class Timed(Protocol):
    """A measurement, as `advice` needs it."""

    @property
    def strategy(self) -> str: ...
    @property
    def measured_speedup(self) -> float: ...
    @property
    def speedup_interval(self) -> tuple[float, float]: ...


def advice(results: Sequence[Timed]) -> str:
    """Give one line on strategies that were measured in the same setting."""
    best = max((r for r in results if r.strategy != "alternate"), key=lambda r: r.measured_speedup)
    if best.strategy == "full" or best.speedup_interval[0] <= 1:
        line = "nothing lossless is surely faster than full here: a better module, fewer threads or int4 may help"
        own = [r for r in results if r.strategy == "alternate" and r.speedup_interval[0] > 1]
        return f"{line}; alternate is {own[0].measured_speedup:.2f}x, with a text of its own" if own else line
    what = "leave it on" if best.strategy == "auto" else f"--strategy {best.strategy} pays, auto finds it by itself"
    return f"{best.strategy} is {best.measured_speedup:.2f}x full; {what}"


def to_json(results: Sequence[Measurement], conditions: Conditions) -> dict[str, object]:
    """Return machine, results and verdict as plain values."""
    return {
        "machine": asdict(conditions),
        "results": [asdict(result) for result in results],
        "verdict": verdict(results),
    }

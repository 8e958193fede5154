"""Both graphs of a bundle at work for a few seconds: against the CPU, and against themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import Kind
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.decoding.both_halves import BothHalves, difference, some_text, tolerance
from recycle_onnx.runtime.decoding.decoder import common_prefix
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.sessions import mapped_options, open_session

SECONDS = 1.0
"""What each of the two texts may take."""
MOST_TOKENS, FEWEST_TOKENS = 32, 4
"""Tokens of each text: more where steps are fast, some in any case."""
TIMED_STEPS = 5
"""Steps of a kind, of which the median counts."""


@dataclass(frozen=True)
class SelfTest:
    """The results of running both halves, with `differences` from the CPU's unoptimized graph if they are known.

    A difference is of logits, as a part of the largest one.

    Of `tokens` greedy tokens of `full`, `same_tokens` at the beginning are those of `verify` too (None without a
    module). `step_ms` are medians of steps on one token.
    """

    differences: dict[str, float]
    tolerance: float
    tokens: int
    same_tokens: int | None
    lossless: str
    step_ms: dict[str, float]


def on_the_cpu(bundle: Bundle, threads: int | None) -> list[Floats]:
    """Compute logits of each half on some text from the graphs as written: the CPU's kernels, no optimizer."""
    manifest = bundle.manifest
    options = mapped_options(bundle, threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = {
        kind: open_session(bundle.graph(kind), manifest.graphs[kind], CPU, threads, options) for kind in manifest.kinds
    }
    ids = some_text(manifest)
    return BothHalves(manifest, sessions).logits(ids, split=len(ids))


def run(model: Model, sessions: Mapping[Kind, ort.InferenceSession], expected: list[Floats] | None) -> SelfTest:
    """Compare a loaded model with the CPU, and `verify` with `full`.

    Raises:
        RecycleError: logits that are not finite, or a step that fails.
    """
    manifest = model.bundle.manifest
    ids = some_text(manifest)
    actual = BothHalves(manifest, sessions).logits(ids, split=len(ids))
    prompt = ids[: max(1, manifest.context_length // 2)]
    step_ms = _step_ms(model, prompt)
    write = partial(model.generate, prompt, GREEDY, stop_ids=(), max_new_tokens=_affordable(step_ms["full"]))
    full = write(strategy="full")
    verify = write(strategy="verify") if "verify" in model.strategies else None
    return SelfTest(
        differences={} if expected is None else dict(zip(sessions, map(difference, expected, actual), strict=True)),
        tolerance=tolerance(manifest),
        tokens=len(full.tokens),
        same_tokens=None if verify is None else common_prefix(full.tokens, verify.tokens),
        lossless="exact" if verify is None else verify.lossless,
        step_ms=step_ms,
    )


def findings(test: SelfTest) -> Iterator[Finding]:
    """Yield a half that departs from the CPU, or a `verify` that departs from `full` where it may not."""
    for half, apart in test.differences.items():
        if apart > test.tolerance:
            yield Finding(
                "broken",
                f"logits of {half} differ from the CPU's by {apart:.1e} of the largest, allowed {test.tolerance:.0e}",
                "the provider computes something else: texts will not be the model's",
                "use --provider cpu, and update the provider's package and driver",
            )
    if test.same_tokens is not None and test.same_tokens < test.tokens and test.lossless == "exact":
        yield Finding(
            "broken",
            f"`verify` departs from `full` after {test.same_tokens} of {test.tokens} tokens",
            "on this bundle the two are promised to be the same",
            "use --strategy full, and report it with what `recycle-onnx doctor BUNDLE --json` prints",
        )


def _step_ms(model: Model, ids: list[int]) -> dict[str, float]:
    decoder = model.decoder("verify" if "verify" in model.strategies else "full")
    decoder.prefill(ids)
    steps: dict[str, Callable[[], object]] = {"full": partial(decoder.full_step, ids[-1:], 1)}
    if decoder.recycler is not None:
        decoder.start_recycling(ids[-1])
        steps["recycle"] = partial(decoder.recycler.step, ids[-1:], 1)
    return {name: _median_ms(step) for name, step in steps.items()}


def _median_ms(step: Callable[[], object]) -> float:
    step()  # the first one allocates
    times = []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def _affordable(step_ms: float) -> int:
    """Return how many tokens `full` writes in the time there is."""
    return min(MOST_TOKENS, max(FEWEST_TOKENS, int(1e3 * SECONDS / step_ms)))

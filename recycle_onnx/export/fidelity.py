"""What a quantized bundle costs in quality: by itself, and against float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.evaluation.scoring import Score, Scorer
from recycle_onnx.export import by_layers
from recycle_onnx.export.heavy import is_heavy
from recycle_onnx.files import read_text
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.sessions import open_mapped

TEXT = Path(__file__).parent / "text" / "measure.txt"
"""Not one of the texts of a calibration: it would flatter what was calibrated on it."""
TEXTS = 8
"""Windows, spread evenly over the text."""
TOKENS = 256
"""Tokens of a window that both bundles read."""
PAIRS = 32
"""Tokens of a window where only runs on one and two tokens are compared: each token is a step, not a part of one run.
"""
NOTABLE, REFUSED = 0.05, 0.25
"""Parts by which perplexity may rise before a warning, and before a bundle is refused: llama.cpp's Q4_K_M costs a model
of 135 M parameters 4 %; at 39 % its answers went round in circles."""
ROWS = 64
"""Rows of logits that are compared at once."""


@dataclass(frozen=True)
class Rounding:
    """The rounding of a quantized bundle by itself: how far runs on two tokens of `text` depart from runs on one.

    `epsilon` bounds how far below the best logit a token of `verify` may lie when one-token runs score it: twice the
    largest difference between the logits of a two-token run and of one-token runs. With `equal_runs` runs of all sizes
    were equal to the bit, and `verify` is `exact`, on the machine that measured.
    """

    text: str
    epsilon: float
    equal_runs: bool


@dataclass(frozen=True)
class Fidelity(Rounding):
    """The quality of a quantized bundle beside float32: perplexity, agreement of best tokens, and acceptance.

    `divergence` is the mean Kullback-Leibler divergence from float32, in nats a token.
    """

    tokens: int
    perplexity_fp32: float
    perplexity: float
    divergence: float
    top1_agreement: float
    acceptance_fp32: float | None
    acceptance: float | None

    @property
    def change(self) -> float:
        """The part by which perplexity rose."""
        return self.perplexity / self.perplexity_fp32 - 1


def measure(
    quantized: Bundle, original: Bundle | None, text: Path | None, report: Progress, threads: int | None = None
) -> Rounding:
    """Measure `quantized` on `text` (default: our own plain English); return a `Fidelity` if there is `original`.

    Raises:
        InputError: `text` is missing, is not UTF-8, or has too few tokens.
    """
    model = _load(quantized, threads)
    report(0, 0, "comparing with float32" if original else "comparing runs on two tokens with runs on one")
    name = text.name if text else "plain English by recycle-onnx"
    if original is None:
        return Rounding(name, _epsilon(model, _read(model, text, PAIRS), report), model.equal_runs)
    texts = _read(model, text, TOKENS)
    return _compared(model, texts, _scores(original, texts, threads), name, report)


def check_quality(precision: str, cost: Rounding, method: str) -> None:
    """Refuse a bundle that lost too much of its quality.

    Raises:
        RecycleError: perplexity rose by more than `REFUSED`.
    """
    if isinstance(cost, Fidelity) and cost.change > REFUSED:
        raise RecycleError(
            f"{precision}: perplexity rises from {cost.perplexity_fp32:.2f} to {cost.perplexity:.2f} "
            f"({cost.change:+.0%}), more than {REFUSED:.0%}: {remedy(precision, method)}; "
            "or --force-quality to write it all the same"
        )


def warning(precision: str, cost: Rounding, method: str) -> str | None:
    """Say what to do about a bundle that lost much; None of a good one."""
    if not isinstance(cost, Fidelity) or cost.change <= NOTABLE:
        return None
    return f"{precision} costs {cost.change:+.1%} of perplexity, more than {NOTABLE:.0%}: {remedy(precision, method)}"


def remedy(precision: str, method: str) -> str:
    """Say what keeps more of a model."""
    if precision != "int4":
        return "use --precision fp32, or int8 where this is fp16" if precision == "fp16" else "use float32 or fp16"
    if method != "calibrated":
        return "use --method calibrated, or int8"
    return "use more --bits-per-weight, --calibration with text like yours, or int8"


def _scores(original: Bundle, texts: list[list[int]], threads: int | None) -> Iterator[tuple[Score, Floats]]:
    """Yield the float32 model's score of each text, and its logits."""
    if is_heavy(original):
        yield from by_layers.scores(original, texts, threads)
        return
    scorer = Scorer(_load(original, threads))
    for ids in texts:
        yield scorer.score(ids), scorer.logits


def _compared(
    model: Model, texts: list[list[int]], plain: Iterator[tuple[Score, Floats]], name: str, report: Progress
) -> Fidelity:
    scorer, scores, divergence = Scorer(model), [], []
    for number, ids in enumerate(texts):
        report(number, len(texts), "comparing with float32")
        score, logits = next(plain)
        scores.append([score, scorer.score(ids)])
        divergence += list(_divergence(logits, scorer.logits))
    theirs, ours = ([pair[which] for pair in scores] for which in (0, 1))
    nats = [np.concatenate([each.nats for each in part]) for part in (theirs, ours)]
    best = [np.concatenate([each.best for each in part]) for part in (theirs, ours)]
    return Fidelity(
        text=name,
        epsilon=_epsilon(model, texts, report),
        equal_runs=model.equal_runs,
        tokens=len(nats[0]),
        perplexity_fp32=math.exp(float(nats[0].mean())),
        perplexity=math.exp(float(nats[1].mean())),
        divergence=float(np.mean(divergence)),
        top1_agreement=float((best[0] == best[1]).mean()),
        acceptance_fp32=_acceptance(theirs),
        acceptance=_acceptance(ours),
    )


def _divergence(plain: Floats, rounded: Floats) -> Iterator[float]:
    """Yield the Kullback-Leibler divergence of each row of `rounded` [S, V] from `plain`."""
    for start in range(0, len(plain), ROWS):
        p, q = (_log_probabilities(logits[start : start + ROWS]) for logits in (plain, rounded))
        yield from (np.exp(p) * (p - q)).sum(-1)


def _log_probabilities(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def _load(bundle: Bundle, threads: int | None) -> Model:
    return Model(bundle, "cpu", threads, open_mapped)


def _read(model: Model, path: Path | None, tokens: int) -> list[list[int]]:
    """Return windows of the text, spread evenly over it."""
    ids = model.encode(read_text(path or TEXT))
    length = min(tokens, model.bundle.manifest.context_length)
    texts = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not texts and path:
        raise InputError(f"{path}: has {len(ids)} tokens; expected at least {length} to measure on")
    return texts[:: max(1, len(texts) // TEXTS)][:TEXTS] or [ids]


def _epsilon(model: Model, texts: list[list[int]], report: Progress) -> float:
    report(0, 0, "comparing runs on two tokens with runs on one")
    return 2 * max(_two_against_one(model, ids[:PAIRS]) for ids in texts)


def _acceptance(scores: list[Score]) -> float | None:
    parts = [each.accepted for each in scores if each.accepted is not None]
    return float(np.concatenate(parts).mean()) if parts else None


def _two_against_one(model: Model, ids: list[int]) -> float:
    """Return the largest difference between logits of two-token and of one-token runs over the same text."""
    rows: list[list[Floats]] = []
    for size in (1, 2):
        decoder: Decoder = model.decoder("full")
        pieces = [ids[start : start + size] for start in range(0, len(ids) - len(ids) % 2, size)]
        # Copied: the next run overwrites the logits.
        rows.append([row for piece in pieces for row in decoder.full_step(piece, keep=size).copy()])
    return max((float(np.abs(a - b).max()) for a, b in zip(*rows, strict=True)), default=0.0)

"""What a quantized bundle costs in quality: by itself, and against float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.scoring import Score, score
from recycle_onnx.export.report import Report
from recycle_onnx.files import read_text
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.decoder import Decoder
from recycle_onnx.runtime.half import Floats
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.sessions import open_mapped

TEXTS = 8
TOKENS = 96
PAIRS = 32


@dataclass(frozen=True)
class Rounding:
    """What a quantized bundle by itself tells: how far runs on two tokens of `text` depart from runs on one.

    `epsilon` bounds how far below the best logit a token of `verify` may lie when one-token runs score it: twice the
    largest difference between the logits of a two-token run and of one-token runs. With `equal_runs` runs of all sizes
    were equal to the bit, and `verify` is `exact`, on the machine that measured.
    """

    text: str
    epsilon: float
    equal_runs: bool


@dataclass(frozen=True)
class Fidelity(Rounding):
    """Perplexity on `tokens` tokens of `text`, how often both bundles' best tokens agree, and acceptance rates."""

    tokens: int
    perplexity_fp32: float
    perplexity: float
    top1_agreement: float
    acceptance_fp32: float | None
    acceptance: float | None


def measure(quantized: Bundle, original: Bundle | None, text: Path | None, report: Report) -> Rounding:
    """What `quantized` tells on `text`, or on what a bundle says when it is sampled; `Fidelity` if there is `original`.

    The two are loaded one after the other.

    Raises:
        InputError: `text` is missing, is not UTF-8, or has too few tokens.
    """
    return _alone(quantized, text, report) if original is None else _compared(quantized, original, text, report)


def _alone(quantized: Bundle, text: Path | None, report: Report) -> Rounding:
    model = _load(quantized)
    texts = _texts(model, text, PAIRS, report)
    return Rounding(_name(text, quantized), _epsilon(model, texts, report), model.equal_runs)


def _compared(quantized: Bundle, original: Bundle, text: Path | None, report: Report) -> Fidelity:
    model = _load(original)
    texts = _texts(model, text, TOKENS, report)
    report("comparing with float32")
    scores = [[score(model, ids) for ids in texts]]
    del model  # one at a time in memory
    model = _load(quantized)
    scores.append([score(model, ids) for ids in texts])
    nats = [np.concatenate([found.nats for found in part]) for part in scores]
    best = [np.concatenate([found.best for found in part]) for part in scores]
    return Fidelity(
        text=_name(text, original),
        epsilon=_epsilon(model, texts, report),
        equal_runs=model.equal_runs,
        tokens=len(nats[0]),
        perplexity_fp32=math.exp(float(nats[0].mean())),
        perplexity=math.exp(float(nats[1].mean())),
        top1_agreement=float((best[0] == best[1]).mean()),
        acceptance_fp32=_acceptance(scores[0]),
        acceptance=_acceptance(scores[1]),
    )


def _load(bundle: Bundle) -> RecycleModel:
    model = RecycleModel(bundle, "cpu", None, open_mapped)
    model.stop_ids = frozenset()  # a text that ends early would tell little
    return model


def _name(text: Path | None, bundle: Bundle) -> str:
    return text.name if text else f"sampled from the {bundle.manifest.precision} bundle at temperature 1, seeds 0 …"


def _texts(model: RecycleModel, text: Path | None, tokens: int, report: Report) -> list[list[int]]:
    report("choosing the text to measure on")
    length = min(tokens, model.bundle.manifest.context_length)
    return _read(model, text, length) if text else _sampled(model, length, report)


def _read(model: RecycleModel, path: Path, length: int) -> list[list[int]]:
    ids = model.encode(read_text(path))
    texts = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not texts:
        raise InputError(f"{path}: has {len(ids)} tokens; expected at least {length} to measure on")
    return texts[:: max(1, len(texts) // TEXTS)][:TEXTS]


def _sampled(model: RecycleModel, length: int, report: Report) -> list[list[int]]:
    start = model.encode("") or [0]
    texts = []
    for seed in range(TEXTS):
        new = length - len(start)
        result = model.generate(start, GREEDY, strategy="full", max_new_tokens=new, temperature=1.0, seed=seed)
        texts.append([*start, *result.tokens])
        report("choosing the text to measure on", seed + 1, TEXTS)
    return texts


def _epsilon(model: RecycleModel, texts: list[list[int]], report: Report) -> float:
    report("comparing runs on two tokens with runs on one")
    return 2 * max(_two_against_one(model, ids[:PAIRS]) for ids in texts)


def _acceptance(scores: list[Score]) -> float | None:
    parts = [found.accepted for found in scores if found.accepted is not None]
    return float(np.concatenate(parts).mean()) if parts else None


def _two_against_one(model: RecycleModel, ids: list[int]) -> float:
    """Largest difference between the logits of two-token and of one-token runs over the same text."""
    rows: list[list[Floats]] = []
    for size in (1, 2):
        decoder: Decoder = model.decoder("full")
        pieces = [ids[start : start + size] for start in range(0, len(ids) - len(ids) % 2, size)]
        rows.append([row for piece in pieces for row in decoder.full_step(piece, keep=size).copy()])
    return max((float(np.abs(a - b).max()) for a, b in zip(*rows, strict=True)), default=0.0)

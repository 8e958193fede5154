"""How well both halves predict given text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycle_onnx.evaluation.scoring import Scorer
from recycle_onnx.evaluation.texts import pieces
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.model import Model


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of the full model, per token and in bits a byte, and of the module.

    The module predicts the token after next, given the true next one.

    `module_coverage` is the part of those tokens that the module can name at all (its draft vocabulary); its
    perplexity is over that part. `acceptance` is how often both halves' best tokens agree on this text.
    """

    documents: int
    tokens: int
    perplexity: float
    bits_per_byte: float
    module_perplexity: float | None
    module_coverage: float | None
    acceptance: float | None


def perplexity(model: Model, documents: Sequence[str], report: Progress = silent) -> Perplexity:
    """Score `documents` (tokens after the first of each; the first too where the tokenizer puts one before it)."""
    nats, module, accepted, size = [], [], [], 0
    scorer = Scorer(model)
    for index, document in enumerate(documents):
        report(index, len(documents), "perplexity")
        size += len(document.encode())
        for ids, first in pieces(model, document):
            if len(ids) <= first:
                continue
            score = scorer.score(ids, first)
            nats.append(score.nats)
            if score.module is not None and score.accepted is not None:
                module.append(score.module.nats)
                accepted.append(score.accepted)
    report(len(documents), len(documents), "perplexity")
    every = np.concatenate([np.zeros(0), *nats])
    theirs = np.concatenate([np.zeros(0), *module])
    known = np.isfinite(theirs)
    return Perplexity(
        documents=len(documents),
        tokens=len(every),
        perplexity=math.exp(every.mean()) if len(every) else math.nan,
        bits_per_byte=float(every.sum()) / math.log(2) / size,
        module_perplexity=math.exp(theirs[known].mean()) if known.any() else None,
        module_coverage=float(known.mean()) if len(theirs) else None,
        acceptance=float(np.concatenate(accepted).mean()) if len(theirs) else None,
    )

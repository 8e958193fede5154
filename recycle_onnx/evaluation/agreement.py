"""How far the text of `alternate` departs from that of `full`, and what that costs under the base."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from recycle_onnx.evaluation.acceptance import OPENING
from recycle_onnx.evaluation.estimate import estimate
from recycle_onnx.evaluation.scoring import score
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import Model


@dataclass(frozen=True)
class Agreement:
    """The agreement of greedy texts of `new_tokens` tokens by `alternate` with those by `full`.

    `identical` is the part of the texts that agree to the end, `tokens_until_difference` the median of identical
    tokens at the beginning. `nats_lost` is how much less likely a token of `alternate` is to the base than one of
    `full`, in mean nats a token, with a 95 % interval over texts (normal approximation).
    """

    texts: int
    new_tokens: int
    identical: float
    tokens_until_difference: float
    nats_lost: float
    nats_lost_interval: tuple[float, float]


def agreement(model: Model, documents: Sequence[str], *, new_tokens: int = 64, report: Progress = silent) -> Agreement:
    """Continue the openings of `documents` both ways."""
    same, lost = [], []
    for index, document in enumerate(documents):
        report(index, len(documents), "agreement")
        prompt = model.encode(document)[:OPENING]
        full, alternate = (
            model.generate(prompt, GREEDY, strategy=name, max_new_tokens=new_tokens).tokens
            for name in ("full", "alternate")
        )
        pairs = list(zip(full, alternate, strict=False))
        differing = [place for place, (a, b) in enumerate(pairs) if a != b]
        ends = [] if len(full) == len(alternate) else [len(pairs)]
        same.append((differing + ends + [len(full)])[0] if differing or ends else new_tokens)
        nats = [score(model, [*prompt, *text], len(prompt)).nats.mean() for text in (full, alternate)]
        lost.append(float(nats[1] - nats[0]))
    report(len(documents), len(documents), "agreement")
    nats_lost, low, high = estimate(lost)
    return Agreement(
        texts=len(lost),
        new_tokens=new_tokens,
        identical=sum(count == new_tokens for count in same) / len(same),
        tokens_until_difference=statistics.median(same),
        nats_lost=nats_lost,
        nats_lost_interval=(low, high),
    )

"""How likely a continuation is to the full model alone, and to `alternate`, where every other token is the module's."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from recycle_onnx.evaluation.scoring import Ids, Nats, Predictions, Score

Decoding = Literal["full", "full_first", "module_first"]
"""Who says the tokens of a continuation: the full model all of them, or both halves by turns, one of them first."""
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)


class Verdict(NamedTuple):
    """A continuation's log-probability in nats, and whether greedy decoding would have said just that.

    `unnamed` of its tokens fell to the module and are outside its draft vocabulary. `alternate` never says such a
    token; it counts as the least likely one that the module can name, so that continuations remain comparable.
    """

    log_probability: float
    greedy: bool
    unnamed: int


def verdict(score: Score, tokens: list[int], decoding: Decoding) -> Verdict:
    """Judge the scored `tokens`, the continuation.

    `full_first` is what `alternate` does after a prompt. The module needs two tokens before its own: where a
    continuation starts at the second token of a text, the full model says that one in either order.
    """
    nats, best, unnamed = score.full.nats.copy(), score.full.best.copy(), 0
    if score.module is not None and decoding != "full":
        skipped = len(tokens) - len(score.module.nats)
        turns = np.arange(skipped, len(tokens))
        turns = turns[turns % 2 == (decoding == "full_first")]
        nats[turns], unnamed = _nameable(score.module, turns - skipped)
        best[turns] = score.module.best[turns - skipped]
    return Verdict(-float(nats.sum()), bool((best == np.asarray(tokens)).all()), unnamed)


def _nameable(module: Predictions, rows: Ids) -> tuple[Nats, int]:
    """Return nats of the module's tokens, the floor instead of infinity, and how many stand on the floor."""
    nats = module.nats[rows]
    unknown = np.isinf(nats)
    return np.where(unknown, module.worst_nats[rows], nats), int(unknown.sum())

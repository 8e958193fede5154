"""Given text through both halves at once: nats of every token, best tokens, and whether the module names them too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.runtime.half import Floats
from recycle_onnx.runtime.model import RecycleModel

Nats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """Of S tokens: `nats` [S-1] of each token after the first, and the full model's `best` [S] next tokens.

    With a module, `module_nats` [S-2] of each token after the second (infinite outside a draft vocabulary), and
    whether it `accepted` [S-1]: named the full model's best token.
    """

    nats: Nats
    best: NDArray[np.int64]
    module_nats: Nats | None
    accepted: NDArray[np.bool_] | None


def score(model: RecycleModel, ids: list[int]) -> Score:
    """Score `ids`, as many as the context holds, in one run of each half."""
    decoder = model.decoder("auto")
    full = decoder.full
    hidden = np.empty((len(ids), full.spec.state_size), full.spec.float_type)
    logits = full.read(ids, None, hidden, keep=len(ids)).copy()
    best = logits.argmax(-1)
    following = _nats(logits[:-1], np.asarray(ids[1:]))
    if decoder.recycler is None or len(ids) < 2:
        return Score(following, best, None, None)
    drafts = decoder.recycler.read(ids[1:], hidden[:-1], np.empty_like(hidden[1:]), keep=len(ids) - 1)
    proposed = drafts.argmax(-1)
    places: NDArray[np.int64] = np.asarray(ids[2:], np.int64)
    known = np.ones(len(places), bool)
    if (draft_ids := decoder.draft_ids) is not None:
        proposed = draft_ids[proposed]
        known = np.isin(places, draft_ids)
        places = np.where(known, np.searchsorted(draft_ids, places), 0)
    module_nats = np.where(known, _nats(drafts[:-1], places), np.inf)
    return Score(following, best, module_nats, proposed == best[1:])


def _nats(logits: Floats, tokens: NDArray[np.int64]) -> Nats:
    """Negative log-probabilities of `tokens` [S] under `logits` [S, V]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    nats: Nats = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(tokens)), tokens]
    return nats

"""Given text through both halves at once: how likely every token is, and which tokens they would have said."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.runtime.half import Floats
from recycle_onnx.runtime.model import RecycleModel

Nats = NDArray[np.float64]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """What one half says about S given tokens, each from all the text before it.

    `nats` [S] are negative log-probabilities, infinite for a token outside a draft vocabulary; `best` [S] is the
    likeliest token in each place, and `worst_nats` [S] belong to the least likely one that the half can name.
    """

    nats: Nats
    best: Ids
    worst_nats: Nats


@dataclass(frozen=True)
class Score:
    """The full model on the given tokens, and the module on those that have at least two before them.

    The module reads the true hidden state two tokens before and the true token before, as it does in decoding.
    """

    full: Predictions
    module: Predictions | None

    @property
    def nats(self) -> Nats:
        """The full model's."""
        return self.full.nats

    @property
    def best(self) -> Ids:
        """The full model's."""
        return self.full.best

    @property
    def accepted(self) -> Flags | None:
        """Whether the module's best token is the full model's."""
        if self.module is None:
            return None
        accepted: Flags = self.module.best == self.full.best[len(self.full.best) - len(self.module.best) :]
        return accepted


class Scorer:
    """Scores texts one after another; what a text has in common with the one before is not read again."""

    def __init__(self, model: RecycleModel) -> None:
        self._decoder = model.decoder("auto")
        full = self._decoder.full
        self._hidden = np.empty((full.cache.limit, full.spec.state_size), full.spec.float_type)
        self._read: list[int] = []

    def score(self, ids: list[int], first: int = 1) -> Score:
        """Score the tokens from `first` on (at least one, at most S - 1 of S), in one run of each half.

        The last token is not read: a text may have one token more than the context.

        Raises:
            InputError: the text is longer.
        """
        read = ids[:-1]
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(self._read, read, strict=False))
        same = min(first - 1, sum(1 for _ in alike))
        self._read = []
        full = self._full(ids, first, same)
        module = self._module(ids, max(first, 2), max(0, same - 1))
        self._read = read
        return Score(full, module)

    def _full(self, ids: list[int], first: int, same: int) -> Predictions:
        full, end = self._decoder.full, len(ids) - 1
        full.crop(same)
        logits = full.read(ids[same:end], None, self._hidden[same:end], keep=len(ids) - first)
        return _predictions(logits, np.asarray(ids[first:]), None)

    def _module(self, ids: list[int], first: int, same: int) -> Predictions | None:
        """Its row p reads the hidden state of token p and token p + 1, and tells token p + 2."""
        module, end = self._decoder.recycler, len(ids) - 2
        if module is None:
            return None
        if end < 1:
            return _predictions(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), None)
        module.crop(same)
        rows = self._hidden[same:end]
        logits = module.read(ids[same + 1 : end + 1], rows, np.empty_like(rows), keep=len(ids) - first)
        return _predictions(logits, np.asarray(ids[first:]), self._decoder.draft_ids)


def score(model: RecycleModel, ids: list[int], first: int = 1) -> Score:
    """Score one text, as `Scorer.score` does."""
    return Scorer(model).score(ids, first)


def _predictions(logits: Floats, tokens: Ids, vocabulary: Ids | None) -> Predictions:
    """Compare logits [S, V] with `tokens` [S]; `vocabulary` [V] are the ids of the logits where it is a draft one."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    total = np.log(np.exp(shifted).sum(-1))
    best, columns, known = logits.argmax(-1), tokens, np.ones(len(tokens), bool)
    if vocabulary is not None:
        best, known = vocabulary[best], np.isin(tokens, vocabulary)
        columns = np.where(known, np.searchsorted(vocabulary, tokens), 0)
    nats = np.where(known, total - shifted[np.arange(len(tokens)), columns], np.inf)
    return Predictions(nats, best, total - shifted.min(-1))

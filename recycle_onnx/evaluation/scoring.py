"""Given text through both halves at once: how likely every token is, and which tokens they would have said."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.contract import Kind
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.model import Model

Nats = NDArray[np.float64]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """The predictions of one half for S tokens of a text, each from all the text before it.

    `nats` [S] are negative log-probabilities, infinite for a token outside a draft vocabulary; `best` [S] is the
    likeliest token in each place, and `worst_nats` [S] belong to the least likely one that the half can name.
    """

    nats: Nats
    best: Ids
    worst_nats: Nats


@dataclass(frozen=True)
class Score:
    """The predictions of the full model for a text, and of the module for tokens that have at least two before them.

    The module reads the true hidden state two tokens before and the true token before, as it does in decoding.
    """

    full: Predictions
    module: Predictions | None

    @property
    def nats(self) -> Nats:
        """The full model's nats for each token."""
        return self.full.nats

    @property
    def best(self) -> Ids:
        """The full model's best token at each place."""
        return self.full.best

    @property
    def accepted(self) -> Flags | None:
        """Whether the module's best token is the full model's."""
        if self.module is None:
            return None
        accepted: Flags = self.module.best == self.full.best[len(self.full.best) - len(self.module.best) :]
        return accepted


class Scorer:
    """A scorer of texts one after another; what a text has in common with the one before is not read again.

    Nor is what both halves say where the two fork: choices of a single token are judged by one run. `logits` [S, V] are
    the full model's for the tokens that were scored last.
    """

    logits: Floats

    def __init__(self, model: Model) -> None:
        self._decoder = model.decoder("auto")
        self._decoder.keep_all_rows()  # texts have long beginnings in common, and fork wherever they like
        full = self._decoder.full
        self._hidden = np.empty((full.cache.limit, full.spec.state_size), full.spec.float_type)
        self._read: list[int] = []
        self._fork: tuple[list[int], dict[Kind, Floats]] = [], {}
        """The latest text up to the first scored token, and logits [1, V] of each half for that one."""

    def score(self, ids: list[int], first: int = 1) -> Score:
        """Score the tokens from `first` on (at least one, at most S - 1 of S), in one run of each half.

        The last token is not read: a text may have one token more than the context.

        Raises:
            InputError: the text is longer.
        """
        read, (text, logits) = ids[:-1], self._fork
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(self._read, read, strict=False))
        same = min(first - 1, sum(1 for _ in alike))
        known = logits if text == ids[:first] else {}
        self._read, self._fork = [], ([], {})
        start = first if known else same
        self._decoder.keep_scored(start)
        full = self._full(ids, first, start, known.get("full"))
        self.logits = full
        module = self._module(ids, max(first, 2), max(0, start - 1), known.get("recycler"))
        firsts: dict[Kind, Floats] = {"full": full[:1]}
        if module is not None:
            firsts["recycler"] = module[:1]
        self._read, self._fork = read, (ids[:first], firsts if first > 1 else {})
        return scored(ids, full, module, self._decoder.draft_ids)

    def _full(self, ids: list[int], first: int, start: int, known: Floats | None) -> Floats:
        """Return the full model's logits for the tokens from `first` on.

        `known` are the logits for the first one, whose text was read before.
        """
        full, end = self._decoder.full, len(ids) - 1
        if start == end and known is not None:
            return known
        made = full.read(ids[start:end], None, self._hidden[start:end], keep=end - max(start, first - 1))
        return made if known is None else np.concatenate([known, made])

    def _module(self, ids: list[int], first: int, start: int, known: Floats | None) -> Floats | None:
        """Return the module's logits.

        Its row p reads the hidden state of token p and the token p + 1, and predicts the token p + 2.
        """
        module, end = self._decoder.recycler, len(ids) - 2
        if module is None:
            return None
        if end < 1:
            return np.zeros((0, module.spec.vocab_size), np.float32)
        if start == end and known is not None:
            return known
        rows = self._hidden[start:end]
        keep = end - max(start, first - 2)
        made = module.read(ids[start + 1 : end + 1], rows, np.empty_like(rows), keep=keep)
        return made if known is None else np.concatenate([known, made])


def score(model: Model, ids: list[int], first: int = 1) -> Score:
    """Score one text, as `Scorer.score` does."""
    return Scorer(model).score(ids, first)


def scored(ids: list[int], full: Floats, module: Floats | None, draft_ids: Ids | None) -> Score:
    """Score the last tokens of a text by logits [S, V] of the full model and [S, Vd] of the module for them."""
    tokens = np.asarray(ids)
    predictions = _predictions(full, tokens[len(ids) - len(full) :], None)
    if module is None:
        return Score(predictions, None)
    return Score(predictions, _predictions(module, tokens[len(ids) - len(module) :], draft_ids))


def _predictions(logits: Floats, tokens: Ids, vocabulary: Ids | None) -> Predictions:
    """Compare logits [S, V] with `tokens` [S]; `vocabulary` [V] are the ids of the logits where it is a draft one."""
    if not len(tokens):
        return Predictions(np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.log(np.exp(shifted).sum(-1, dtype=np.float64))  # float32 exponentials: off by 1e-7 of the sum at most
    best, columns, known = logits.argmax(-1), tokens, np.ones(len(tokens), bool)
    if vocabulary is not None:
        best, known = vocabulary[best], np.isin(tokens, vocabulary)
        columns = np.where(known, np.searchsorted(vocabulary, tokens), 0)
    nats = np.where(known, total - shifted[np.arange(len(tokens)), columns], np.inf)
    return Predictions(nats, best, total - shifted.min(-1))

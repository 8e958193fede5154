"""Embeddings: a vector of length 1 for each text, pooled from the full model's hidden states after its final norm."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import FINAL_POST, POOLINGS
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Floats, Half, States
from recycle_onnx.runtime.padded_batch import batches, read_batch, takes_batches
from recycle_onnx.runtime.text import beginning

DEFAULT_POOLING = "mean"
"""Of a base that was not trained for embeddings: its last state is about the next token alone."""
SHORTEST = 1e-12
"""What a vector is divided by at least, as in torch.nn.functional.normalize."""

Text = str | Sequence[int]
Texts = Text | Sequence[Text]


class EmbeddingModel(Protocol):
    """The part of `Model` that embeddings need, which cannot be imported here: it imports this file."""

    bundle: Bundle
    tokenizer: Tokenizer
    prefill_chunk: int

    def decoder(self, strategy: str) -> Decoder: ...

    def prompt_ids(self, prompt: Text) -> list[int]: ...


class Embedder:
    """A reader of texts, in caches of its own, that makes a vector of each."""

    def __init__(self, model: EmbeddingModel, pooling: str | None = None, dimensions: int | None = None) -> None:
        """Make the caches.

        `pooling` is by default the manifest's, and where that names none, the mean. `dimensions` is how many values a
        vector has, the first ones of the hidden state; by default all.

        Raises:
            InputError: no such pooling, or more dimensions than a hidden state has.
        """
        self.model = model
        self.pooling = pooling or model.bundle.manifest.pooling or DEFAULT_POOLING
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling is {pooling!r:.100}; expected one of: {', '.join(POOLINGS)}")
        self._decoder = model.decoder("full")
        full = self._decoder.full
        self._context, width = full.cache.limit, full.spec.hidden_size
        self.dimensions = width if dimensions is None else dimensions
        if type(self.dimensions) is not int or not 1 <= self.dimensions <= width:
            raise InputError(f"dimensions is {dimensions!r:.100}; expected 1 to {width}, the size of a hidden state")
        # the module may read other states than the last ones, and those are what a half gives otherwise
        self._half = Half(full.session, replace(full.spec, taps=(FINAL_POST,)), self._context)
        self._takes_batches = takes_batches(self._half)

    def ids(self, text: Text, truncate: bool = False) -> list[int]:
        """Return a text's token ids, with the special tokens that the tokenizer adds; ids are taken as they are.

        Of a text that is too long, `truncate` leaves out the end, and keeps the special tokens after it.

        Raises:
            InputError: no tokens, ids outside the vocabulary, or a text that leaves no room in the context.
        """
        if isinstance(text, Sized) and not len(text):
            raise InputError("there is no text, or an empty one; expected some text to embed")
        if truncate and isinstance(text, str):
            return self.model.prompt_ids(beginning(self.model.tokenizer, text, self._context - 1))
        return self.model.prompt_ids(text)

    def vectors(self, texts: Sequence[list[int]], progress: Progress = silent) -> Floats:
        """Read texts, short ones of like length side by side; return their vectors [N, dimensions], of length 1.

        Raises:
            RecycleError: the model was closed.
        """
        made: Floats = np.empty((len(texts), self.dimensions), np.float32)
        groups = batches([len(text) for text in texts]) if self._takes_batches else [[n] for n in range(len(texts))]
        count = 0
        for group in groups:
            progress(count, len(texts), "texts")
            made[group] = self._read_group([texts[place] for place in group])
            count += len(group)
        progress(count, len(texts), "texts")
        return made

    def vector(self, ids: list[int]) -> Floats:
        """Read a text; return its vector [dimensions], whose squares add up to 1.

        Raises:
            RecycleError: the model was closed.
        """
        chunk, spec = self.model.prefill_chunk, self._half.spec
        # float64: a mean is a sum over thousands of tokens, in which float32 would lose digits.
        total = np.zeros(spec.hidden_size, np.float64)
        with self._decoder.exclusive.use():
            self._half.crop(0)
            for start in range(0, len(ids), chunk):
                piece = ids[start : start + chunk]
                states = np.empty((len(piece), spec.hidden_size), spec.float_type)
                self._half.read(piece, None, states)
                total = self._pooled(states, total)
        return self._normalised(total)

    def _read_group(self, texts: list[list[int]]) -> Floats:
        if len(texts) > 1:
            with self._decoder.exclusive.use():
                states = read_batch(self._half, texts)
            if np.isfinite(states).all():  # otherwise it is told of by the text that is to blame, read alone
                pooled = [self._pooled(rows[: len(text)]) for rows, text in zip(states, texts, strict=True)]
                return np.stack([self._normalised(one) for one in pooled])
        return np.stack([self.vector(text) for text in texts])

    def _pooled(self, states: States, before: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
        """Pool states [S, H] of a text, of which the states `before` were pooled already; the length is left as is."""
        if self.pooling == "last":
            last: NDArray[np.float64] = states[-1].astype(np.float64)
            return last
        total: NDArray[np.float64] = states.sum(0, np.float64)
        return total + before

    def _normalised(self, pooled: NDArray[np.float64]) -> Floats:
        kept = pooled[: self.dimensions]
        normalised: Floats = (kept / max(float(np.linalg.norm(kept)), SHORTEST)).astype(np.float32)
        return normalised


def embed(
    model: EmbeddingModel,
    texts: Texts,
    pooling: str | None = None,
    dimensions: int | None = None,
    progress: Progress = silent,
) -> Floats:
    """Return the vector [D] of a text, or the vectors [N, D] of several; see `Model.embed`.

    All texts are looked at before the first one is read.
    """
    embedder = Embedder(model, pooling, dimensions)
    many, alone = _listed(texts)
    vectors = embedder.vectors([embedder.ids(text) for text in many], progress)
    return vectors[0] if alone else vectors


def _listed(texts: Any) -> tuple[Sequence[Text], bool]:
    """Return the texts as a list, and whether it was one alone, which may be a list of token ids."""
    alone = not isinstance(texts, list | tuple) or not texts or isinstance(texts[0], int | np.integer)
    return ([texts] if alone else texts), alone

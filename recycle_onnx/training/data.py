"""Token ids to train on: windows of text, drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recycle_onnx.errors import InputError
from recycle_onnx.training.tokens import Tokens


@dataclass(frozen=True)
class Corpus:
    """Token ids to train on, and others that are only measured; both may lie in mapped files."""

    train: Tokens
    held_out: Tokens

    def batches(self, batch_size: int, length: int, seed: int) -> Iterator[torch.Tensor]:
        """Endless random windows [batch_size, length] of the training text; the seed decides all of them."""
        generator = np.random.default_rng(seed)
        while True:
            starts = generator.integers(0, len(self.train) - length + 1, batch_size)
            windows = np.stack([self.train[start : start + length] for start in starts])
            yield torch.from_numpy(windows.astype(np.int64))

    def held_out_windows(self, length: int, limit: int) -> torch.Tensor:
        """At most `limit` windows [N, length] of the held-out text, in order, without overlap."""
        count = min(len(self.held_out) // length, limit)
        windows: NDArray[np.int64] = self.held_out[: count * length].reshape(count, length).astype(np.int64)
        return torch.from_numpy(windows)


def split(name: str, train: Tokens, held_out: Tokens | None, length: int) -> Corpus:
    """Set aside the last 5 % of the tokens where nothing else is held out; `name` says what the data is.

    Raises:
        InputError: the text is shorter than a few windows of `length` tokens.
    """
    if held_out is None:
        cut = max(len(train) - max(len(train) // 20, length), 0)
        train, held_out = train[:cut], train[cut:]
    if min(len(train), len(held_out)) < length:
        found = f"{len(train)} tokens to train on and {len(held_out)} held out"
        raise InputError(f"{name}: {found}; expected at least {length} of each for this --sequence-length")
    return Corpus(train, held_out)

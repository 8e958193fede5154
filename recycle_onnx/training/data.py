"""Windows of token ids to train on, and what the frozen base says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recycle_onnx.errors import InputError
from recycle_onnx.training.target_cache import CachedTargets
from recycle_onnx.training.targets import Targets
from recycle_onnx.training.tokens import Tokens

Windows = NDArray[np.uint32]
"""Token ids [N, S], perhaps in a mapped file."""


class Batch(NamedTuple):
    """A batch: token ids [B, S], and the base's targets for them where it is frozen."""

    ids: Tensor
    targets: Targets | None


@dataclass(frozen=True)
class Examples:
    """Windows of text by their number, with the base's targets where it is frozen."""

    parts: tuple[Windows, ...]
    """Of several kinds of text, one behind the other."""
    targets: CachedTargets | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def windows(self) -> Windows:
        """All windows [N, S], of every kind of text."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

    def batch(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Return the windows with these numbers, in order."""
        ids = torch.from_numpy(self.windows[list(numbers)].astype(np.int64)).to(device)
        return Batch(ids, self.targets.read(list(numbers)).to(device) if self.targets else None)


@dataclass(frozen=True)
class Corpus:
    """The text of a training, by its kind: windows to train on, and others that are only measured."""

    train: tuple[Windows, ...]
    held_out: tuple[Windows, ...]


def batches(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield endless batches of the numbers below `count`: the seed decides the order of every epoch."""
    waiting: list[int] = []
    generator = np.random.default_rng(seed)
    while True:
        while len(waiting) < batch_size:
            waiting += generator.permutation(count).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def cut(tokens: Tokens, length: int) -> Windows:
    """Cut a text's tokens into windows [N, length], without overlap; what is left at the end is dropped."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)


def split(name: str, parts: Sequence[Windows], held_out: Windows | None, *, most: int) -> Corpus:
    """Set aside the last twentieth of each kind of text where nothing else is held out, at most `most` windows in all.

    Raises:
        InputError: there is not a window of each; `name` says what the data is.
    """
    if held_out is not None:
        corpus = Corpus(tuple(parts), (held_out[:most],))
    else:
        aside = [min(max(len(part) // 20, 1), max(most // len(parts), 1), len(part)) for part in parts]
        corpus = Corpus(
            tuple(part[: len(part) - count] for part, count in zip(parts, aside, strict=True)),
            tuple(part[len(part) - count :] for part, count in zip(parts, aside, strict=True)),
        )
    sizes = [sum(part.size for part in half) for half in (corpus.train, corpus.held_out)]
    if min(sizes) == 0:
        there = f"{sizes[0]} tokens to train on and {sizes[1]} held out"
        raise InputError(f"{name}: {there}; expected at least {parts[0].shape[1]} of each for this --sequence-length")
    return corpus

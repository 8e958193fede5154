"""Documents to pieces of token ids that a context holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from recycle_onnx.runtime.model import Model

LONGEST = 1024
"""Tokens of a piece: a longer context takes memory for logits of every row."""


class Piece(NamedTuple):
    """The token ids of a piece of text, of which those from `first` on are to be scored."""

    ids: list[int]
    first: int


def pieces(model: Model, document: str) -> Iterator[Piece]:
    """Yield a document whole; a long one in pieces that overlap by half, so that every token has some context."""
    ids = model.encode(document)
    size = min(LONGEST, model.bundle.manifest.context_length)
    yield Piece(ids[:size], 1)
    for start in range(size // 2, len(ids) - size // 2, size // 2):
        yield Piece(ids[start : start + size], size - size // 2)

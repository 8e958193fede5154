"""Text files to pieces of token ids that a context holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_text
from recycle_onnx.runtime.model import RecycleModel

SEPARATOR = "<|endoftext|>"
LONGEST = 1024


class Piece(NamedTuple):
    """Token ids, of which those from `first` on are to be scored."""

    ids: list[int]
    first: int


def read_documents(path: Path) -> list[str]:
    """Documents of a UTF-8 text file, split by `<|endoftext|>`.

    Raises:
        InputError: no such text, or nothing in it.
    """
    documents = [piece.strip() for piece in read_text(path).split(SEPARATOR)]
    documents = [document for document in documents if document]
    if not documents:
        raise InputError(f"{path}: is empty; expected text, documents split by {SEPARATOR}")
    return documents


def pieces(model: RecycleModel, document: str) -> Iterator[Piece]:
    """A document whole; a long one in pieces that overlap by half, so that every token has some context."""
    ids = model.encode(document)
    size = min(LONGEST, model.bundle.manifest.context_length)
    yield Piece(ids[:size], 1)
    for start in range(size // 2, len(ids) - size // 2, size // 2):
        yield Piece(ids[start : start + size], size - size // 2)

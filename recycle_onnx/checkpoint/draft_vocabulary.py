"""A reduced vocabulary for the module: it only ever proposes tokens that are frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, read_text, write_json
from recycle_onnx.tokenizer import load_tokenizer

SMALLEST = 16
"""Fewer tokens are a slip of the keyboard: no text is made of them."""
FILE = "draft_vocabulary.json"
"""Beside the module's config, in a checkpoint and where a module is published."""


@dataclass(frozen=True)
class DraftVocabulary:
    """A choice of the `size` most frequent tokens of `text`.

    The module's LM head then has so many rows, which is most of a small module's cost. A token outside is never
    proposed, and costs a rejection; what `verify` gives stays the same. (FR-Spec, arXiv 2502.14856.)
    """

    size: int
    text: Path

    @classmethod
    def given(cls, size: int | None, text: Path | None) -> DraftVocabulary | None:
        """Make what the options --draft-vocab and --draft-text ask for; None without them.

        Raises:
            InputError: only one of them is given.
        """
        if (size is None) != (text is None):
            raise InputError("--draft-vocab and --draft-text go together: how many tokens, and where to count them")
        return None if size is None or text is None else cls(size, text)

    def choose(self, folder: Path, vocab_size: int) -> list[int]:
        """Choose token ids, ascending; tokens that the text lacks fill up in the order of their ids.

        Raises:
            InputError: a size out of range, or no text.
        """
        check_size(self.size, vocab_size)
        lines = read_text(self.text).splitlines(keepends=True)
        counts: Counter[int] = Counter()
        for encoding in load_tokenizer(folder).encode_batch_fast(lines):
            counts.update(encoding.ids)
        if not counts:
            raise InputError(f"{self.text}: is empty; expected text like that which the model will write")
        return most_frequent(self.size, [counts[token] for token in range(vocab_size)])


def check_size(size: int, vocab_size: int) -> None:
    """Refuse a draft vocabulary that is tiny, or larger than the model's.

    Raises:
        InputError: says what it may be.
    """
    if not SMALLEST <= size <= vocab_size:
        raise InputError(f"draft-vocab is {size}; expected {SMALLEST} to {vocab_size}, the model's vocabulary")


def most_frequent(size: int, counts: Sequence[int]) -> list[int]:
    """Return the `size` tokens with the highest counts, ascending; of equal ones those with lower ids."""
    return sorted(sorted(range(len(counts)), key=lambda token: (-counts[token], token))[:size])


@dataclass(frozen=True)
class DraftFile:
    """A checkpoint's draft vocabulary: the number of tokens, and the file in `recycler/` that lists their ids."""

    size: int
    file: str = FILE

    def read(self, folder: Path, vocab_size: int) -> list[int]:
        """Read the token ids, ascending.

        Raises:
            InputError: the file is missing, or does not list `size` ids below `vocab_size` in ascending order.
        """
        path = folder / self.file
        ids: list[int] = []
        if isinstance(listed := read_json(path).get("token_ids"), list):
            ids = [token for token in listed if type(token) is int and 0 <= token < vocab_size]
        if len(ids) != self.size or ids != sorted(set(ids)) or ids != listed:
            raise InputError(f"{path}: expected {self.size} ascending 'token_ids' below {vocab_size}; attach again")
        return ids

    def write(self, folder: Path, ids: list[int]) -> None:
        """Write the token ids into the file."""
        write_json(folder / self.file, {"token_ids": ids})

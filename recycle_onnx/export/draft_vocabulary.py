"""A reduced vocabulary for the module: it only ever proposes tokens that are frequent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_text
from recycle_onnx.tokenizer import load_tokenizer

SMALLEST = 16


@dataclass(frozen=True)
class DraftVocabulary:
    """The `size` most frequent tokens of `text`.

    The module's LM head then has so many rows, which is most of a small module's cost. A token outside is never
    proposed, and costs a rejection; what `verify` gives stays the same. (FR-Spec, arXiv 2502.14856.)
    """

    size: int
    text: Path

    def choose(self, folder: Path, vocab_size: int) -> list[int]:
        """Token ids, ascending; tokens that the text lacks fill up in the order of their ids.

        Raises:
            InputError: a size out of range, or no text.
        """
        if not SMALLEST <= self.size <= vocab_size:
            raise InputError(f"draft-vocab is {self.size}; expected {SMALLEST} to {vocab_size}, the model's vocabulary")
        lines = read_text(self.text).splitlines(keepends=True)
        counts: Counter[int] = Counter()
        for encoding in load_tokenizer(folder).encode_batch_fast(lines):
            counts.update(encoding.ids)
        if not counts:
            raise InputError(f"{self.text}: is empty; expected text like that which the model will write")
        frequent = sorted(range(vocab_size), key=lambda token: (-counts[token], token))
        return sorted(frequent[: self.size])

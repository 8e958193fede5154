"""Texts as a grammar has them, where some of a tokenizer's special tokens may stand in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer


class Speller:
    """A speller of texts for one tokenizer; the special tokens that it knows are those in `texts`."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        special = {token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        known = tuple(texts)
        self._special = {text: id_ for text, id_ in special.items() if any(text in piece for piece in known)}

    @property
    def shown(self) -> frozenset[int]:
        """The special tokens that the texts consist of."""
        return frozenset(self._special.values())

    def is_special(self, text: str) -> bool:
        """Tell whether a text is a special token."""
        return text in self._special

    def spelled(self, text: str) -> str:
        """Return a text as the grammar has it: special tokens by their ids, all else in quotes; "" for nothing."""
        spelled = (f"<[{self._special[piece]}]>" if piece in self._special else json.dumps(piece)
                   for piece in self._pieces(text))  # fmt: skip
        return " ".join(spelled)

    def ordinary_beginning(self, text: str) -> str:
        """Return what stands in a text before its first special token."""
        first = next(iter(self._pieces(text)), "")
        return "" if first in self._special else first

    def _pieces(self, text: str) -> list[str]:
        if not self._special:
            return [text] if text else []
        return [piece for piece in re.split(f"({'|'.join(map(re.escape, self._special))})", text) if piece]


def escaped(text: str) -> str:
    """Return a text as a regular expression of the grammar."""
    return re.escape(text).replace("\\\n", r"\n").replace("/", r"\/")

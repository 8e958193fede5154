"""The text of single tokens, for lists of log-probabilities."""

from __future__ import annotations

from tokenizers import Tokenizer

INCOMPLETE = "\ufffd"


class TokenDecoder:
    """A decoder of single token ids to their text inside a longer one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # Decoders may treat the first token of a text differently (they drop its space): so none stands first.
        encoded = tokenizer.encode("a", add_special_tokens=False).ids
        self._anchor: list[int] = encoded[-1:]
        self._before = len(self._decode(self._anchor))

    def text(self, token: int) -> str:
        """Return a token's text; bytes that form no character are U+FFFD."""
        return self._decode([*self._anchor, token])[self._before :]

    def bytes(self, token: int) -> list[int] | None:
        """Return a token's text in UTF-8, or None where the token is a part of a character."""
        text = self.text(token)
        return None if INCOMPLETE in text else list(text.encode())

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

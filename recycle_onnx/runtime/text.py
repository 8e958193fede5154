"""Token ids to text as they come: whole characters only, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

CONTEXT = 8
"""Prompt tokens that are decoded along, so that the first new word keeps its leading space."""
INCOMPLETE = "\ufffd"


class TextStream:
    """Decodes new tokens one by one; a character of several tokens comes with its last one.

    (`tokenizers`' own DecodeStream raises on ids that form no valid UTF-8, which a model may well produce.)
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._shown = len(self._ids)

    def push(self, token: int) -> str:
        """Text that became certain with this token; often all of it, sometimes none."""
        self._ids.append(token)
        whole = self._decode(self._ids)
        if whole.endswith(INCOMPLETE):
            return ""
        text = whole[len(self._decode(self._ids[: self._shown])) :]
        # The last token stays as context: decoders may treat the first one of a text differently.
        self._ids = self._ids[max(0, self._shown - CONTEXT) :]
        self._shown = len(self._ids)
        return text

    def flush(self) -> str:
        """What is left when no more tokens come: bytes that form no character, as U+FFFD."""
        text = self._decode(self._ids)[len(self._decode(self._ids[: self._shown])) :]
        self._shown = len(self._ids)
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class StopStrings:
    """Withholds text that may be the beginning of a stop string, and ends at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Text that is certain to come before any stop string."""
        self._held += text
        hits = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if hits:
            self.found = True
            certain, self._held = self._held[: min(hits)], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """What was withheld, now that no more text comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

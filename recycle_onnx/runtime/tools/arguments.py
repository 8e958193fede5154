"""Readers of a call's arguments while they are written; what they read is passed on as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Protocol

from recycle_onnx.runtime.text import overlap
from recycle_onnx.runtime.tools.call_format import ParameterTags
from recycle_onnx.runtime.tools.parameters import Parameter


class ArgumentsReader(Protocol):
    """A reader of the arguments of one call; `closed` once their end was read."""

    closed: bool

    def read(self, text: str) -> tuple[str, str]:
        """Read text that follows what was read; return the JSON that it makes certain, and the rest, which waits."""


class JsonArguments:
    """A reader of arguments that are a JSON object already."""

    def __init__(self) -> None:
        self.closed = False
        self._depth, self._string = 0, _StringScanner()

    def read(self, text: str) -> tuple[str, str]:
        """Read up to the end of the object."""
        size = sum(1 for _ in takewhile(self._belongs, text))
        return text[:size], text[size:]

    def _belongs(self, character: str) -> bool:
        if self.closed:
            return False
        if not self._string.inside and character in "{[":
            self._depth += 1
        elif not self._string.inside and character in "}]":
            self._depth -= 1
            self.closed = self._depth == 0
        self._string.read(character)
        return True


class TaggedArguments:
    """A reader of parameters in tags, up to the text `end` after them, which stays unread."""

    def __init__(self, parameters: Sequence[Parameter], tags: ParameterTags, end: str) -> None:
        self.closed = False
        self._tags, self._end = tags, end
        self._openings = {tags.opening(parameter.name): parameter for parameter in parameters}
        self._separator = "{"
        self._state: Callable[[str], tuple[str, str]] = self._between

    def read(self, text: str) -> tuple[str, str]:
        """Read as far as tags and values are certain."""
        made = ""
        while not self.closed:
            state, before = self._state, text
            piece, text = state(text)
            made += piece
            if (self._state, text) == (state, before):
                break
        return made, text

    # The states: each returns the JSON that it makes certain, and what it leaves to be read.

    def _between(self, text: str) -> tuple[str, str]:
        """Wait for the name of a parameter, or for the end."""
        if text.startswith(self._end):
            self.closed = True
            return ("}" if self._separator != "{" else "{}"), text
        for opening, parameter in self._openings.items():
            if text.startswith(opening):
                made = f"{self._separator}{json.dumps(parameter.name, ensure_ascii=False)}: "
                self._separator, self._state = ", ", self._value_of(parameter)
                return made, text[len(opening) :]
        return "", text

    def _value_of(self, parameter: Parameter) -> Callable[[str], tuple[str, str]]:
        if parameter.words is None:
            self._string = _StringScanner()
            return self._json
        self._words = parameter.words
        return self._undecided

    def _undecided(self, text: str) -> tuple[str, str]:
        """Find out whether a value is words or JSON."""
        value, rest = self._until_end(text)
        is_whole = rest.startswith(self._tags.after_value)
        if is_whole and self._words.is_json(value):
            self._state = self._after
            return value, rest
        if is_whole or not self._words.may_become_json(value):
            self._state = self._text
            return '"', text
        return "", text

    def _text(self, text: str) -> tuple[str, str]:
        """Quote the words of a value."""
        value, rest = self._until_end(text)
        quoted = json.dumps(value, ensure_ascii=False)[1:-1]
        if rest.startswith(self._tags.after_value):
            self._state = self._after
            quoted += '"'
        return quoted, rest

    def _json(self, text: str) -> tuple[str, str]:
        """Pass on a JSON value, in whose strings the tag after it may stand."""
        mark = self._tags.after_value
        for place, character in enumerate(text):
            if not self._string.inside and mark.startswith(text[place : place + len(mark)]):
                self._state = self._after if text.startswith(mark, place) else self._json
                return text[:place], text[place:]
            self._string.read(character)
        return text, ""

    def _after(self, text: str) -> tuple[str, str]:
        """Wait for all that stands after a value."""
        ending = self._tags.after_value + self._tags.after
        if not text.startswith(ending):
            return "", text
        self._state = self._between
        return "", text[len(ending) :]

    def _until_end(self, text: str) -> tuple[str, str]:
        """Return the part of a value, and the rest, which begins with the tag after it or with a part of the tag."""
        mark = self._tags.after_value
        end = text.find(mark)
        size = end if end >= 0 else len(text) - overlap(text, mark)
        return text[:size], text[size:]


class _StringScanner:
    """A scanner that knows whether a place in a JSON text is `inside` a string."""

    def __init__(self) -> None:
        self.inside = self._escaped = False

    def read(self, character: str) -> None:
        if not self.inside:
            self.inside = character == '"'
        elif self._escaped:
            self._escaped = False
        else:
            self._escaped = character == "\\"
            self.inside = character != '"'

"""How a model writes calls: the pieces of text around a function's name and its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ParameterTags:
    """A way to write arguments one by one: `before_name NAME before_value VALUE after_value after` for each.

    Strings stand there as they are, without quotes, and never with `after_value` in them; other values are JSON.
    """

    before_name: str
    before_value: str
    after_value: str
    after: str

    def opening(self, name: str) -> str:
        """Return what stands before the value of a parameter."""
        return self.before_name + name + self.before_value

    def written(self, arguments: Mapping[str, Any]) -> str:
        """Return arguments as the model writes them."""
        texts = ((name, value if isinstance(value, str) else _json(value)) for name, value in arguments.items())
        return "".join(self.opening(name) + text + self.after_value + self.after for name, text in texts)


@dataclass(frozen=True)
class CallFormat:
    """A way to write calls: `trigger before_name NAME before_arguments ARGUMENTS after_arguments`.

    After the first call of an answer `between` stands for trigger and `before_name`; `end` follows the last one.
    Pieces may hold special tokens. Where the trigger begins something else than a call too, it counts only at the
    `beginning` of an answer. Arguments are a JSON object, or parameters in `tags`.

    A model writes calls so where its chat template has all of `signs`. Where the template wants ids of nine letters
    and digits in messages, `short_ids` is set.
    """

    name: str
    signs: tuple[str, ...]
    trigger: str
    before_name: str
    before_arguments: str
    after_arguments: str
    between: str
    end: str = ""
    tags: ParameterTags | None = None
    beginning: bool = False
    short_ids: bool = False

    @property
    def pieces(self) -> tuple[str, ...]:
        """Every text that may stand around names and arguments."""
        tags = self.tags
        inside = () if tags is None else (tags.before_name, tags.before_value, tags.after_value, tags.after)
        outside = (self.trigger, self.before_name, self.before_arguments, self.after_arguments, self.between, self.end)
        return (*outside, *inside)

    def opening(self, name: str, first: bool = True) -> str:
        """Return what stands before the arguments of a call of `name`."""
        return (self.trigger + self.before_name if first else self.between) + name + self.before_arguments

    def written(self, calls: list[tuple[str, Mapping[str, Any]]]) -> str:
        """Return calls, each a name and its arguments, as the model writes them."""
        texts = [
            self.opening(name, first=index == 0) + (self.tags.written(arguments) if self.tags else _json(arguments))
            for index, (name, arguments) in enumerate(calls)
        ]
        return "".join(text + self.after_arguments for text in texts) + self.end


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

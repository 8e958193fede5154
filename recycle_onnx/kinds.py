"""Kinds of settings: which values each kind takes, and the one line that refuses any other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol

from recycle_onnx.errors import InputError


class Kind(Protocol):
    """A kind of value."""

    @property
    def expected(self) -> str:
        """The values in words, after "expected"."""
        ...

    def own(self, name: str, value: Any) -> Any:
        """Return the value, where needed as a copy that nobody else can change.

        Raises:
            InputError: another kind of value, or out of range; the line calls the setting `name`.
        """
        ...


def refusal(name: str, value: object, expected: str) -> InputError:
    """Make the error for a value, with `name` as the command line writes it."""
    return InputError(f"{name.replace('_', '-')} is {value!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A kind of numbers between two bounds, which belong to them unless `above` or `below` is set.

    `whole` numbers are integers, `optional` ones may be None, only `infinite` ones infinity. `notes` say what single
    values mean. `besides` are allowed outside of the bounds, each with its meaning.
    """

    least: float | None = None
    most: float | None = None
    above: bool = False
    below: bool = False
    whole: bool = False
    optional: bool = False
    infinite: bool = False
    notes: Mapping[float, str] = field(default_factory=dict)
    besides: Mapping[float, str] = field(default_factory=dict)

    def own(self, name: str, value: Any) -> Any:
        """Return a number in range."""
        if not ((value is None and self.optional) or self.has(value)):
            raise refusal(name, value, self.expected)
        return value

    def has(self, value: object) -> bool:
        """Tell whether a value is such a number."""
        if not isinstance(value, Integral if self.whole else Real) or isinstance(value, bool):
            return False
        number: Any = value
        least, most = self.least, self.most
        return number in self.besides or (
            (self.whole or _is_finite(number) or (self.infinite and abs(number) == math.inf))
            and (least is None or (number > least if self.above else number >= least))
            and (most is None or (number < most if self.below else number <= most))
        )

    @property
    def expected(self) -> str:
        """The range in words, such as `0 (all tokens) to 1`."""
        rest = "".join(f", {value:g} for {note}" for value, note in self.notes.items() if value not in self._bounds)
        return self._range + rest + "".join(f", or {value:g} for {note}" for value, note in self.besides.items())

    @property
    def _bounds(self) -> tuple[float | None, float | None]:
        return self.least, self.most

    @property
    def _range(self) -> str:
        if self.least is None:
            return "a whole number" if self.whole else "a number"
        least = self._shown(self.least)
        if self.most is None:
            if self.above:
                return f"more than {least}"
            return f"{least} or more" if self.least == 0 else f"at least {least}"
        most = self._shown(self.most)
        if self.above and self.below:
            return f"a number between {least} and {most}"
        if self.above:
            return f"more than {least} and at most {most}"
        return f"{least} or more, and less than {most}" if self.below else f"{least} to {most}"

    def _shown(self, bound: float) -> str:
        return f"{bound:g} ({self.notes[bound]})" if bound in self.notes else f"{bound:g}"


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False


TOKEN_ID = Number(least=0, whole=True)


@dataclass(frozen=True)
class Name:
    """A kind with one of several names; None leaves it to somebody else, whom `unset` names."""

    names: tuple[str, ...]
    unset: str

    @property
    def expected(self) -> str:
        """The names in words."""
        return f"one of: {', '.join(self.names)}"

    def own(self, name: str, value: Any) -> Any:
        """Return a known name."""
        if not isinstance(value, str | None):
            raise refusal(name, value, f"a name, or None for {self.unset}")
        if value is not None and value not in self.names:
            raise InputError(f"{name} {value!r} is not known; expected {self.expected}")
        return value


@dataclass(frozen=True)
class Choice:
    """A kind with one of several words, or None where that is one of them."""

    words: tuple[str, ...]
    optional: bool = False

    @property
    def expected(self) -> str:
        """The words."""
        return f"one of: {', '.join(self.words)}"

    def own(self, name: str, value: Any) -> Any:
        """Return a known word."""
        if not ((value is None and self.optional) or value in self.words):
            raise refusal(name, value, self.expected)
        return value


@dataclass(frozen=True)
class Text:
    """A kind of any string."""

    expected = "a string"

    def own(self, name: str, value: Any) -> str:
        """Return a string."""
        if not isinstance(value, str):
            raise refusal(name, value, self.expected)
        return value


@dataclass(frozen=True)
class Flag:
    """A kind of True or False."""

    expected = "True or False"

    def own(self, name: str, value: Any) -> bool:
        """Return a bool."""
        if not isinstance(value, bool):
            raise refusal(name, value, self.expected)
        return value


class FrozenBiases(dict[int, float]):
    """A mapping of numbers by token id, not to be changed."""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("a GenerationConfig cannot be changed; config.updated(logit_bias=…) makes another one")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenBiases, (dict(self),)


@dataclass(frozen=True)
class Biases:
    """A kind of numbers for some token ids, which may be minus infinity too."""

    number: Number
    expected = "token ids with numbers"

    def own(self, name: str, value: Any) -> FrozenBiases:
        """Return a copy."""
        try:
            biases = FrozenBiases(value)
        except (TypeError, ValueError) as error:
            raise refusal(name, value, self.expected) from error
        for token, bias in biases.items():
            TOKEN_ID.own(f"a token id of {name}", token)
            if bias != float("-inf") and not self.number.has(bias):
                raise refusal(f"{name} of token {token}", bias, f"minus infinity, or {self.number.expected}")
        return biases

    def from_json(self, name: str, value: object) -> dict[int, Any]:
        """Give the token ids of a JSON object back their kind: JSON has no objects with numbers for names.

        Raises:
            InputError: no object, or a name that is no number.
        """
        try:
            return {int(token): bias for token, bias in dict(value).items()}  # type: ignore[call-overload]
        except (TypeError, ValueError) as error:
            raise refusal(name, value, self.expected) from error


@dataclass(frozen=True)
class Strings:
    """A kind of several strings, none of them empty; a single one stands for a list of it."""

    expected = "a list of strings"

    def own(self, name: str, value: Any) -> tuple[str, ...]:
        """Return a copy."""
        strings = (value,) if isinstance(value, str) else _items(name, value, self.expected)
        for string in strings:
            if not isinstance(string, str):
                raise InputError(f"{name} has {string!r}; expected strings, and token ids in stop_ids")
            if not string:
                raise InputError(f"{name} has an empty string; expected strings of at least one character")
        return strings


@dataclass(frozen=True)
class TokenIds:
    """A kind of several token ids, or None."""

    expected = "a list of token ids, or None"

    def own(self, name: str, value: Any) -> tuple[int, ...] | None:
        """Return a copy."""
        if value is None:
            return None
        ids = _items(name, value, self.expected)
        for token in ids:
            TOKEN_ID.own(f"a token id of {name}", token)
        return ids


def _items(name: str, value: Iterable[Any], expected: str) -> tuple[Any, ...]:
    if isinstance(value, Mapping | bytes):  # to go through one gives its names, or numbers
        raise refusal(name, value, expected)
    try:
        return tuple(value)
    except TypeError as error:
        raise refusal(name, value, expected) from error

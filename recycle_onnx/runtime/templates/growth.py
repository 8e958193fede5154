"""What the operators, methods and filters of a chat template may take, asked before they run."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from numbers import Number
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

from recycle_onnx.runtime.templates.budget import LARGEST_BITS, SMALL, CountedIterator, OverBudgetError, RenderBudget

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "**": operator.pow, "%": operator.mod,
}  # fmt: skip
"""By their signs in templates. Results may be far larger than what they are made of, and are measured first."""
METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
        "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace",
        "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
        "swapcase", "title", "upper", "zfill",
    )),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(("bit_length", "is_integer")),
    float: frozenset(("is_integer",)),
}  # fmt: skip
"""What a template may call of Python's own; the others change things, or make bytes."""
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""Where `splitlines` splits: the number of its parts is counted before they are made."""
BYTES_A_STEP = 64
"""Bytes that a method may go over for one step of the budget."""
COMPARISONS_A_STEP = 1024
"""Of characters, in methods that try every place: a search from the right, a strip."""
WIDEST = 10_000
"""Characters that a format may pad to; `center` and the like go up to the largest value."""
CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+)?)?")


def combined(budget: RenderBudget, sign: str, left: Any, right: Any) -> Any:
    """Return the value of a binary operator.

    Raises:
        OverBudgetError: it would be larger than a value may be.
        TypeError: there is no such operator for these.
    """
    budget.spend(1)
    if sign == "+" and isinstance(left, str) and isinstance(right, str):  # nearly all that templates compute
        budget.expect(len(left) + len(right))
    elif isinstance(left, Number) and isinstance(right, Number):
        _check_number(sign, left, right)
    elif sign == "%" and isinstance(left, str):
        budget.expect(formatted_size(budget, left, right))
    elif sign == "*" and isinstance(left, str | list | tuple | int) and isinstance(right, str | list | tuple | int):
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int):
            budget.expect(budget.weight(sequence) * max(0, times))
    elif sign == "+" and isinstance(left, list | tuple):
        budget.expect(budget.weight(left) + budget.weight(right))
    elif not isinstance(left, Undefined) and not isinstance(right, Undefined):
        kinds = f"{type(left).__name__!r} and {type(right).__name__!r}"
        raise TypeError(f"unsupported operand type(s) for {sign}: {kinds}")
    return budget.made(OPERATORS[sign](left, right))


def _check_number(sign: str, left: Any, right: Any) -> None:
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = {"*": left.bit_length() + right.bit_length(), "**": max(1, left.bit_length()) * right}.get(sign, 0)
    if bits > LARGEST_BITS:
        raise OverBudgetError("it makes a number that is larger than a chat template may")


def formatted_size(budget: RenderBudget, layout: str, values: Any) -> int:
    """Return the most bytes that `layout % values` can make.

    Raises:
        OverBudgetError: it pads to more than a format may.
    """
    widths = 0
    for conversion in CONVERSION.finditer(layout):
        widths += sum(_width(width) for width in conversion.groups() if width)
    # Python stores a text in up to 4 bytes a character, as many as its widest one takes.
    return 4 * (len(layout) + widths) + layout.count("%") * budget.weight(values)


def _width(text: str) -> int:
    if text == "*" or len(text) > len(str(WIDEST)) or int(text) > WIDEST:
        raise OverBudgetError(f"it pads to more than the {WIDEST} characters that a chat template may")
    return int(text)


def check_layout(layout: str) -> None:
    """Refuse a format like `>99999999`.

    Raises:
        OverBudgetError: it pads to more than a format may.
    """
    for width in re.findall(r"\d+", layout):
        _width(width.lstrip("0") or "0")


def check_method(budget: RenderBudget, owner: Any, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Let a method of Python's own pass.

    Raises:
        SecurityError: it is not for templates.
        OverBudgetError: it would take more than there is.
    """
    kind = next((kind for kind in METHODS if isinstance(owner, kind)), None)
    if kind is None or name not in METHODS[kind]:
        raise SecurityError(f"{type(owner).__name__}.{name} is not for chat templates")
    if not isinstance(owner, str):
        budget.spend(len(owner) if isinstance(owner, list | tuple) else 1)
        return
    budget.spend(1 + len(owner) // BYTES_A_STEP)
    values = (*args, *named.values())
    if name in ("center", "ljust", "rjust", "zfill"):
        budget.expect(4 * _int(values[:1]))
    elif name == "replace" and len(values) >= 2 and all(isinstance(value, str) for value in values[:2]):
        budget.expect(replaced_size(owner, *values[:2]))
    elif name == "join":
        for value in values[:1]:
            joined_size(budget, owner, value)
    elif name in ("split", "rsplit", "splitlines"):
        budget.expect(2 * SMALL * _pieces(owner, name, values) + 4 * len(owner), parts=True)
    if name in ("rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip") and values:
        budget.spend(len(owner) * (len(values[0]) if isinstance(values[0], str) else 0) // COMPARISONS_A_STEP)


def _pieces(text: str, name: str, values: tuple[Any, ...]) -> int:
    if name == "splitlines":
        return 1 + sum(text.count(end) for end in LINE_ENDS)
    limits = [value for value in values if isinstance(value, int) and value >= 0]
    separator = values[0] if values and isinstance(values[0], str) and values[0] else None
    pieces = len(text) // 2 if separator is None else text.count(separator)
    return 1 + min([pieces, *limits])


def replaced_size(text: str, old: str, new: str) -> int:
    """Return the bytes of `text` with `new` for every `old`, in the widest characters of both."""
    return 4 * (len(text) + text.count(old) * max(0, len(new) - len(old)))


def joined_size(budget: RenderBudget, separator: str, values: Any) -> None:
    """Ask for the room of values in a row; iterators report for themselves.

    Raises:
        OverBudgetError: there is none.
    """
    if isinstance(values, str):
        budget.expect(len(values) * (2 * SMALL + 4 * len(separator)), parts=True)
    elif not isinstance(values, CountedIterator):
        budget.expect(budget.weight(values) + 4 * len(separator) * (len(values) if hasattr(values, "__len__") else 0))


def _int(values: Any) -> int:
    return next((value for value in values if isinstance(value, int)), 0)

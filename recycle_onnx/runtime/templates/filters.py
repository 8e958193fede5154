"""The filters and tests of chat templates, each within the budget of the rendering."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from jinja2 import Undefined, pass_context
from jinja2.filters import FILTERS, do_map
from jinja2.runtime import Context, str_join
from jinja2.tests import TESTS

from recycle_onnx.runtime.templates.budget import SMALL, CountedIterator, OverBudgetError, RenderBudget, current
from recycle_onnx.runtime.templates.growth import (
    BYTES_A_STEP,
    combined,
    formatted_size,
    joined_size,
    replaced_size,
)  # fmt: skip
from recycle_onnx.runtime.templates.steps import MADE, SPREAD, STEP, TOGETHER

FOR_PAGES = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters that no chat template needs, and whose time or size is not known before."""
OVER_VALUES = (
    "batch", "groupby", "join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "slice",
    "sort", "sum", "unique",
)  # fmt: skip
"""Filters that go over a value's parts, and may keep them all."""
LARGEST_PIECES = 100_000
"""Parts that `batch` and `slice` may make, before they make them."""
LONGEST_NUMBER = 1000
"""Characters of a text that becomes a number: the time to convert grows with their square."""
MOST_DECIMALS = 100
"""Digits that `round` may ask for: more than any float has."""
DEEPEST_INDENT = 64
"""Spaces of a level that `tojson` may indent by: every line of a deep value begins with its level's."""

NOTHING = Undefined()
"""The input of a filter that is called without one."""
Filter = Callable[..., Any]


def all_filters() -> dict[str, Any]:
    """Return jinja's own filters without those for web pages, and those that the changed syntax tree calls."""
    kept = {name: run for name, run in FILTERS.items() if name not in FOR_PAGES}
    own = {"tojson": _to_json, "sum": _sum}
    within = {name: _within_budget(name, run) for name, run in {**kept, **own}.items()}
    return {**within, STEP: _step, MADE: _made, SPREAD: _spread, TOGETHER: _together}


def all_tests() -> dict[str, Any]:
    """Return jinja's own tests, each of them a step."""
    return {name: _test(run) for name, run in TESTS.items()}


# All of them take the context, so that jinja2 never computes one while it compiles: then there is no budget yet.


@pass_context
def _step(context: Context, value: Any, steps: int) -> Any:
    current.get().spend(steps)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return current.get().made(value)


@pass_context
def _spread(context: Context, values: Any) -> Any:
    current.get().expect(_size(values) * 2 * SMALL)
    return values


@pass_context
def _together(context: Context, values: list[Any]) -> Any:
    budget = current.get()
    budget.expect(budget.weight(values))
    return budget.made(str_join(values))


def _within_budget(name: str, run: Filter) -> Filter:
    passed = getattr(run, "jinja_pass_arg", None)
    kind = None if passed is None else passed.name
    check = CHECKS.get(name)

    @pass_context
    def bounded(context: Context, value: Any = NOTHING, *args: Any, **named: Any) -> Any:
        budget = current.get()
        depth = value.depth if isinstance(value, CountedIterator) else 0
        budget.spend(1 + budget.weight(value) // BYTES_A_STEP)
        budget.expect(sum(map(budget.weight, (*args, *named.values()))))
        if name in OVER_VALUES and not isinstance(value, CountedIterator) and isinstance(value, Iterable):
            budget.expect(_size(value) * 2 * SMALL, parts=True)
            value = _over(value, budget)
        if check is not None:
            value = check(budget, value, args, named)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        before = () if kind is None else (first[kind],)
        return budget.made(run(*before, value, *args, **named), depth=depth)

    return bounded


def _over(values: Iterable[Any], budget: RenderBudget) -> Iterator[Any]:
    for value in values:
        budget.spend(1)
        yield value


def _size(values: Any) -> int:
    return len(values) if isinstance(values, Sized) and not isinstance(values, Undefined) else 0


def _test(run: Any) -> Filter:
    passed = getattr(run, "jinja_pass_arg", None)

    @pass_context
    def stepped(context: Context, *args: Any) -> Any:
        budget = current.get()
        budget.spend(1)
        budget.expect(sum(map(budget.weight, args)))
        return run(*args) if passed is None else run(context.environment, *args)

    return stepped


# What a filter may take, by name: each gives the value back, iterators of `join` as a list.


def _arg(args: tuple[Any, ...], named: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else named.get(name, default)


def _center(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    width = _arg(args, named, 0, "width", 80)
    budget.expect(4 * width if isinstance(width, int) else 0)
    return value


def _indent(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    width = _arg(args, named, 0, "width", 4)
    each = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    lines = len(value.splitlines()) if isinstance(value, str) else 1
    budget.expect(budget.weight(value) + 4 * (1 + lines) * max(0, each))
    return value


def _replace(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    old, new = str(_arg(args, named, 0, "old", "")), str(_arg(args, named, 1, "new", ""))
    budget.expect(replaced_size(str(value), old, new))
    return value


def _join(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    values = list(value)
    joined_size(budget, str(_arg(args, named, 0, "d", "")), values)
    return values


def _format(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    budget.expect(formatted_size(budget, str(value), args or named))
    return value


def _pieces(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    number = next((n for n in (*args, *named.values()) if isinstance(n, int)), 0)
    if number > LARGEST_PIECES:
        raise OverBudgetError(f"{number} pieces are more than a chat template may make")
    budget.expect(SMALL * max(0, number))
    budget.spend(max(0, number))
    return value


def _round(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    precision = _arg(args, named, 0, "precision", 0)
    if isinstance(precision, int) and abs(precision) > MOST_DECIMALS:
        raise OverBudgetError(f"a number is rounded to {precision} places; a chat template may ask for {MOST_DECIMALS}")
    return value


def _number(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_NUMBER:
        raise OverBudgetError("it reads a number that is longer than a chat template may")
    return value


def _json(budget: RenderBudget, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    indent, separators = _arg(args, named, 1, "indent"), _arg(args, named, 2, "separators") or ()
    each = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    if each > DEEPEST_INDENT:
        raise OverBudgetError(f"JSON is indented by {each}; a chat template may ask for {DEEPEST_INDENT}")
    weight, depth = budget.weight(value), budget.depth(value)
    parts = weight // SMALL
    budget.spend(parts)
    budget.expect(weight + 4 * parts * (depth * max(0, each) + sum(len(text) for text in separators)))
    return value


CHECKS: dict[str, Callable[[RenderBudget, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "batch": _pieces, "center": _center, "float": _number, "format": _format, "indent": _indent, "int": _number,
    "join": _join, "replace": _replace, "round": _round, "slice": _pieces, "tojson": _json, "truncate": _center,
}  # fmt: skip


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as transformers does: jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context
def _sum(context: Context, values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    total = start
    for value in values if attribute is None else do_map(context, values, attribute=attribute):
        total = combined(current.get(), "+", total, value)
    return total

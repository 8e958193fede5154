"""Jinja as transformers sets it up for chat templates: sandboxed and within a budget, since they come from the net.

Needs jinja2. What only web pages use (`urlize`, `lipsum`, `autoescape` and the like) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.templates.budget import CountedIterator, OverBudgetError, RenderBudget, current
from recycle_onnx.runtime.templates.filters import all_filters, all_tests
from recycle_onnx.runtime.templates.growth import check_layout, check_method, combined
from recycle_onnx.runtime.templates.steps import metered

LONGEST_TEMPLATE = 128 << 10
"""Characters; models' own have up to some 20 thousand. So many take a second or two to compile."""
LONGEST_MESSAGE = 500
"""Characters of what a template says when it refuses."""
LONGEST_DATE = 200
"""Characters of the layout of a date."""


def compiled(text: str, where: str) -> Callable[[Mapping[str, Any]], str]:
    """Compile a chat template to a function of its variables; `where` names it in errors.

    The function raises InputError where the template refuses what it is given, or takes more than its budget.

    Raises:
        InputError: a syntax error, or a template that is too long.
    """
    if len(text) > LONGEST_TEMPLATE:
        raise InputError(f"{where} has {len(text)} characters; expected at most {LONGEST_TEMPLATE}")
    try:
        template = _environment().from_string(text)
    except TemplateSyntaxError as error:
        raise InputError(f"{where}, line {error.lineno}: {_short(error.message)}") from error
    except Exception as error:  # nested too deeply for the parser or for Python, a number with too many digits
        raise InputError(f"{where} cannot be compiled: {_short(error)}") from error

    def render(variables: Mapping[str, Any]) -> str:
        try:
            token = current.set(RenderBudget(variables.values()))
            try:
                return template.render(variables)
            finally:
                current.reset(token)
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(f"{where} refuses these messages: {_short(error)}") from error

    return render


def _short(error: object) -> str:
    text = str(error)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"


class _Environment(ImmutableSandboxedEnvironment):
    """An environment in which everything that is computed reports to the budget of the rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    @staticmethod
    def concat(pieces: Any) -> str:
        """Join all pieces of a text: of the template, a macro or a block."""
        texts, budget = list(pieces), current.get()
        budget.spend(len(texts))
        budget.expect(sum(map(len, texts)))
        return str(budget.made("".join(texts)))

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        return super()._generate(metered(source), *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return combined(current.get(), operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        budget = current.get()
        budget.spend(1)
        method = getattr(obj, "__wrapped__", obj)  # `format` comes in a wrapper
        owner = getattr(method, "__self__", None)
        plain = isinstance(owner, str) or (type(owner).__module__ == "builtins" and owner is not None)
        if plain and method is obj:
            args = tuple(list(value) if isinstance(value, CountedIterator) else value for value in args)
            check_method(budget, owner, method.__name__, args, named)
        budget.expect(sum(map(budget.weight, (*args, *named.values()))))
        return budget.made(super().call(context, obj, *args, **named), deep=isinstance(owner, str))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Bound what `str.format` pads to and repeats; jinja2 wraps it for safety."""
        if getattr(value, "__name__", None) not in ("format", "format_map"):
            return None
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str):
            return None
        formatter = _EscapeFormatter(self, escape=owner.escape) if isinstance(owner, Markup) else _Formatter(self)
        by_name = value.__name__ == "format_map"

        def run(*args: Any, **named: Any) -> str:
            if by_name:
                (named,), args = args, ()
            return type(owner)(formatter.vformat(owner, args, named))

        return run


class _Bounded(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = current.get()
        check_layout(format_spec)
        budget.spend(1)
        budget.weight(value)
        return budget.made(super().format_field(value, format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        budget = current.get()
        budget.weight(value)
        return super().convert_field(value, conversion)


class _Formatter(_Bounded):
    pass


class _EscapeFormatter(_Bounded, SandboxedEscapeFormatter):
    pass


@pass_context
def _printed(context: Context, value: Any) -> str:
    budget = current.get()
    budget.spend(1)
    if isinstance(value, str):
        return value
    budget.weight(value)
    return str(budget.made(str(value)))


@cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,  # constants would be computed while there is no budget
        finalize=_printed,
    )
    environment.filters, environment.tests = all_filters(), all_tests()
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _now,
        "namespace": _Namespace,
        "dict": _dict,
    }
    return environment


class _Generation(Extension):
    """A block of `{% generation %}`, which marks answers for training; here it is a scope like any other."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """A namespace without a way to Python's internals; what it holds may change, and so is not printed."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        values = dict(*rest, **values)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot have {name!r}")


def _dict(pairs: Any = (), /, **values: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        current.get().spend(1)  # one by one: keys may be chosen so that each looks like all the others
        made[key] = value
    return {**made, **values}


def _now(layout: str) -> str:
    if len(layout) > LONGEST_DATE:
        raise OverBudgetError("it asks for a date that is longer than a chat template may")
    return datetime.now().strftime(layout)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)

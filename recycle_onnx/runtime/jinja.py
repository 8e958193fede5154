"""Jinja as transformers sets it up for chat templates: sandboxed, since they come from the net (needs jinja2)."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from recycle_onnx.errors import InputError


def compiled(text: str, where: str) -> Template:
    """A chat template, ready to be rendered; `where` names it in errors.

    Raises:
        InputError: a syntax error.
    """
    try:
        return _environment().from_string(text)
    except TemplateSyntaxError as error:
        raise InputError(f"{where}, line {error.lineno}: {error.message}") from error


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
        "namespace": _Namespace,
        "dict": lambda *args, **values: dict(*args, **values),
    }
    return environment


class _Generation(Extension):
    """`{% generation %}` marks answers for training; here it is a scope like any other."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Without a way to Python's internals."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        values = dict(*rest, **values)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot have {name!r}")


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)  # jinja2's own escapes HTML


def _raise_exception(message: str) -> None:
    raise TemplateError(message)

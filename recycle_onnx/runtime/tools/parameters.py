"""Which parameters a tool has, and how their values are written where each stands in tags of its own.

A value whose schema says no more of strings than their length, or lists them, is words: strings stand there as they
are. Any other is JSON, with strings in quotes, so that all of its schema can be enforced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.tools.tool import Tool

DEFINITIONS = frozenset(("$defs", "definitions"))
OF_STRINGS = frozenset(("minLength", "maxLength"))
"""Keywords that words can follow."""
SCALARS = {
    "null": r"null",
    "boolean": r"true|false",
    "integer": r"-?(0|[1-9][0-9]*)",
    "number": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?",
}
"""JSON values that may stand where words may, by their type."""
BEGINNINGS = {
    "null": r"n?u?l?l?",
    "boolean": r"t?r?u?e?|f?a?l?s?e?",
    "integer": r"-?[0-9]*",
    "number": r"[-+.0-9eE]*",
    "object": r"(\{(.|\n)*)?",
    "array": r"(\[(.|\n)*)?",
}
"""What each of them begins with, so that words are known as such before their end."""
DEEPEST = 16
"""References that are followed one after another: they may go in a circle."""
OF_ALL = frozenset((
    "allOf", "anyOf", "oneOf", "not", "if", "minProperties", "maxProperties", "patternProperties", "propertyNames",
    "dependentRequired", "dependentSchemas", "unevaluatedProperties",
))  # fmt: skip
"""Keywords about all parameters together, which tags cannot follow."""


@dataclass(frozen=True)
class Words:
    """A value without quotes: `pieces` are the alternatives in Lark, and some texts are JSON values, not strings.

    Those are the texts in `values`, and all of the types in `types`.
    """

    pieces: tuple[str, ...]
    types: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()

    def is_json(self, text: str) -> bool:
        """Tell whether a whole text is a value of JSON, and no string."""
        return text in self.values or (self.may_become_json(text) and bool(self.types & _types(text)))

    def may_become_json(self, text: str) -> bool:
        """Tell whether a text may go on to be a value of JSON."""
        return any(value.startswith(text) for value in self.values) or any(
            re.fullmatch(BEGINNINGS[kind], text) for kind in self.types
        )


ANYTHING = Words(("/(.|\\n)*/",), frozenset(BEGINNINGS))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool; `words` say how it is written, None for JSON as `schema` describes it."""

    name: str
    required: bool
    schema: Mapping[str, Any]
    words: Words | None


def parameters_of(schema: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the parameters of the schema of a tool's arguments; there are none but those that it names."""
    shared = {name: schema[name] for name in (*DEFINITIONS, "x-guidance") if name in schema}
    own = _resolved(schema, schema)
    listed = _mapping(own.get("properties"))
    required = [name for name in _list(own.get("required")) if isinstance(name, str)]
    named = {**listed, **{name: {} for name in required if name not in listed}}
    return tuple(
        Parameter(name, name in required, {**_mapping(one), **shared}, _words(one, schema))
        for name, one in named.items()
    )


def check_followed(tool: Tool) -> None:
    """Refuse a strict tool whose parameters have keywords that tags cannot follow.

    Raises:
        InputError: it is one.
    """
    unfollowed = sorted(OF_ALL & tool.parameters.keys())
    if tool.strict and unfollowed:
        raise InputError(
            f"the parameters of tool {tool.name!r} have {unfollowed[0]!r}, which cannot be enforced where a model "
            "writes every parameter by itself, as this one does: leave it or strict out"
        )


def _words(schema: Any, root: Mapping[str, Any]) -> Words | None:
    """Return how a value is written in words; None where it is JSON."""
    alternatives = _alternatives(schema, root)
    if alternatives == [{}]:
        return ANYTHING
    parts = [_part(one) for one in alternatives]
    words = [part for part in parts if part is not None]
    if len(words) < len(parts) or not any(map(_has_string, alternatives)):
        return None
    return Words(
        tuple(piece for one in words for piece in one.pieces),
        frozenset().union(*(one.types for one in words)),
        frozenset().union(*(one.values for one in words)),
    )


def _alternatives(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """Return the schemas of which a value follows one, as far as words may follow them."""
    if schema is True:
        return [{}]
    own = _resolved(_mapping(schema), root)
    several = [name for name in ("anyOf", "oneOf") if name in own]
    if several and len(own) == 1 and depth < DEEPEST:
        return [one for some in _list(own[several[0]]) for one in _alternatives(some, root, depth + 1)]
    types = own.get("type")
    return [_of_type(own, kind) for kind in types] if isinstance(types, list) else [own]


def _of_type(schema: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return a schema of several types as one of them has it, so far as words can tell."""
    kept = {name: value for name, value in schema.items() if kind == "string" or name not in OF_STRINGS}
    return {**kept, "type": kind}


def _part(schema: Mapping[str, Any]) -> Words | None:
    """Return one alternative in words; None where words cannot follow it."""
    keys, kind = schema.keys() - {"type"}, schema.get("type")
    if keys in ({"enum"}, {"const"}):
        return _listed([value for value in _values(schema) if kind is None or kind in _types_of(value)])
    if kind == "string" and keys <= OF_STRINGS and all(isinstance(schema[key], int) for key in keys):
        lengths = f"{schema.get('minLength', 0)},{schema.get('maxLength', '')}"
        return Words((f"/(.|\\n){{{lengths}}}/",))
    if isinstance(kind, str) and kind in SCALARS and not keys:
        return Words((f"/{SCALARS[kind]}/",), frozenset((kind,)))
    return None


def _listed(values: list[Any]) -> Words | None:
    if not values or any(isinstance(value, (dict, list, float)) for value in values):
        return None
    others = [json.dumps(value) for value in values if not isinstance(value, str)]
    strings = [value for value in values if isinstance(value, str)]
    return Words(tuple(map(json.dumps, [*strings, *others])), values=frozenset(others))


def _has_string(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "string" or any(isinstance(value, str) for value in _values(schema))


def _values(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else _list(schema.get("enum"))


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with its reference followed, if that is one into the definitions beside it."""
    for _ in range(DEEPEST):
        match = re.fullmatch(r"#/(\$defs|definitions)/([^/~%]+)", str(schema.get("$ref", "")))
        target = _mapping(root.get(match[1])).get(match[2]) if match else None
        if not isinstance(target, Mapping):
            break
        schema = {**target, **{name: value for name, value in schema.items() if name != "$ref"}}
    return {name: value for name, value in schema.items() if name not in DEFINITIONS and name != "x-guidance"}


def _types(text: str) -> frozenset[str]:
    """Return the types of a text that is JSON; none for another."""
    try:
        return _types_of(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return frozenset()


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _types_of(value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(("boolean",))
    kinds = {int: ("integer", "number"), float: ("number",), str: ("string",), dict: ("object",), list: ("array",)}
    return frozenset(kinds.get(type(value), ("null",)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""The schema of a tool's arguments as it is enforced: without words for readers, and closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recycle_onnx.runtime.structured import ONE_SPACE
from recycle_onnx.runtime.tools.tool import Tool

FOR_READERS = frozenset(("title", "description", "default", "examples", "$comment", "deprecated", "readOnly"))
"""Keywords that allow and forbid nothing."""
OF_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
"""Keywords whose value holds schemas by name."""
IN_LISTS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
OTHER = frozenset(("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"))
TOGETHER = frozenset((
    "allOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "patternProperties", "$ref", "anyOf", "oneOf",
))  # fmt: skip
"""Keywords by which an object may have properties that are named elsewhere."""


def enforced(tool: Tool) -> dict[str, Any]:
    """Return the schema that the arguments of a call will follow.

    An object that lists properties, and does not say whether it may have others, has none: a model that goes on with
    names of its own invention helps nobody. What fits this schema fits the tool's own.
    """
    schema = dict(tool.parameters)
    closing = not _has_any(schema, frozenset(("allOf", "not", "if", "dependentSchemas", "unevaluatedProperties")))
    return {**_tidied(schema, closing), "type": "object", "x-guidance": {**ONE_SPACE, "lenient": not tool.strict}}


def _tidied(schema: Any, closing: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    tidied = {name: _value(name, value, closing) for name, value in schema.items() if name not in FOR_READERS}
    if closing and "properties" in schema and not schema.keys() & TOGETHER:
        tidied.setdefault("additionalProperties", False)
    return tidied


def _value(keyword: str, value: Any, closing: bool) -> Any:
    if keyword in OF_SCHEMAS and isinstance(value, Mapping):
        return {name: _tidied(schema, closing) for name, schema in value.items()}
    if keyword in IN_LISTS and isinstance(value, list):
        return [_tidied(schema, closing) for schema in value]
    return _tidied(value, closing) if keyword in OTHER else value


def _has_any(value: Any, keywords: frozenset[str]) -> bool:
    if isinstance(value, Mapping):
        return bool(value.keys() & keywords) or any(_has_any(part, keywords) for part in value.values())
    return isinstance(value, list) and any(_has_any(part, keywords) for part in value)

"""`response_format`: what an answer of that form has to be."""

from __future__ import annotations

from recycle_onnx.runtime.structured import Constraint, JsonSchema
from recycle_onnx.serve import schema

ANY_OBJECT = {"type": "object"}


def constraint(wanted: schema.ResponseFormat | None) -> Constraint | None:
    """None for plain text.

    Raises:
        InputError: the schema is not one.
    """
    if isinstance(wanted, schema.JsonObject):
        return JsonSchema(ANY_OBJECT)
    if isinstance(wanted, schema.JsonOf):
        return JsonSchema(wanted.json_schema.schema_)
    return None

"""`response_format`: what an answer of that form has to be."""

from __future__ import annotations

from recycle_onnx.runtime.structured import Constraint, JsonSchema
from recycle_onnx.serve import schema
from recycle_onnx.serve.errors import ApiError

ANY_OBJECT = {"type": "object"}
PARAM = "response_format.json_schema.schema"


def constraint(wanted: schema.ResponseFormat | None, most_bytes: int) -> Constraint | None:
    """None for plain text.

    Raises:
        InputError: the schema is not one.
        ApiError: it has more than `most_bytes` of JSON.
    """
    if isinstance(wanted, schema.JsonObject):
        return JsonSchema(ANY_OBJECT)
    if isinstance(wanted, schema.JsonOf):
        made = JsonSchema(wanted.json_schema.schema_)
        size = len(made.text())
        if size > most_bytes:
            raise ApiError(
                400, "invalid_value", f"the JSON schema has {size} bytes; expected at most {most_bytes}", PARAM
            )
        return made
    return None

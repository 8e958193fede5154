"""`response_format`: which logits processors make an answer of that form."""

from __future__ import annotations

from recycle_onnx.runtime.processors import Processor, StatefulProcessor
from recycle_onnx.serve import schema
from recycle_onnx.serve.errors import ApiError


def processors(wanted: schema.ResponseFormat | None) -> tuple[Processor | StatefulProcessor, ...]:
    """None for plain text.

    Raises:
        ApiError: 400; what makes structured output is not installed.
    """
    if wanted is None or wanted.type == "text":
        return ()
    message = f"response_format {wanted.type} needs recycle-onnx[structured] on the server, which is not installed"
    raise ApiError(400, "structured_output_unavailable", message, "response_format")

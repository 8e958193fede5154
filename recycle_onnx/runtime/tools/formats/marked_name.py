"""A marker before the name, and one before the arguments."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat

MARKED_NAME = CallFormat(
    name="marked name",
    signs=("[TOOL_CALLS]", "[ARGS]"),
    trigger="[TOOL_CALLS]",
    before_name="",
    before_arguments="[ARGS]",
    after_arguments="",
    between="[TOOL_CALLS]",
    short_ids=True,
)

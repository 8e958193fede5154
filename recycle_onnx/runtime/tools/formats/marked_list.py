"""A JSON list after a marker; older templates have a space before the list."""

from __future__ import annotations

from dataclasses import replace

from recycle_onnx.runtime.tools.call_format import CallFormat

MARKED_LIST = CallFormat(
    name="marked list",
    signs=("[TOOL_CALLS]",),
    trigger="[TOOL_CALLS]",
    before_name='[{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}",
    between=', {"name": "',
    end="]",
    short_ids=True,
)
MARKED_LIST_SPACED = replace(MARKED_LIST, signs=("[TOOL_CALLS] [",), before_name=' [{"name": "')

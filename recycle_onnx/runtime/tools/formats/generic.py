"""Bare JSON, a line for each call: for models whose chat template shows no format, and who are told of it in words."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat

GENERIC = CallFormat(
    name="generic",
    signs=(),
    trigger='{"name": "',
    before_name="",
    before_arguments='", "arguments": ',
    after_arguments="}",
    between='\n{"name": "',
    beginning=True,
)

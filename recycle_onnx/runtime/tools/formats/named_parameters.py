"""Bare JSON with "parameters", as Meta's models write it."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat

NAMED_PARAMETERS = CallFormat(
    name="named parameters",
    signs=('{"name": ', '"parameters": '),
    trigger='{"name": "',
    before_name="",
    before_arguments='", "parameters": ',
    after_arguments="}",
    between='; {"name": "',
    beginning=True,
)

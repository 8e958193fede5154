"""JSON in tags, as Nous Research's Hermes writes it, and many models since."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat

TAGGED = CallFormat(
    name="tagged",
    signs=("<tool_call>", '"name":', '"arguments":'),  # others have parameters in tags of their own there
    trigger="<tool_call>",
    before_name='\n{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}\n</tool_call>",
    between='\n<tool_call>\n{"name": "',
)

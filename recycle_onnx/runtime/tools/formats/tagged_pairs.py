"""Names and values of parameters in alternate tags; newer templates of that kind leave out the line breaks."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat, ParameterTags

TAGGED_PAIRS = CallFormat(
    name="tagged pairs",
    signs=("<tool_call>", "<arg_key>", "<arg_value>"),
    trigger="<tool_call>",
    before_name="",
    before_arguments="\n",
    after_arguments="</tool_call>",
    between="\n<tool_call>",
    tags=ParameterTags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>", "\n"),
)
TAGGED_PAIRS_CLOSE = CallFormat(
    name="close tagged pairs",
    signs=("<tool_call>", "</arg_key><arg_value>"),
    trigger="<tool_call>",
    before_name="",
    before_arguments="",
    after_arguments="</tool_call>",
    between="<tool_call>",
    tags=ParameterTags("<arg_key>", "</arg_key><arg_value>", "</arg_value>", ""),
)

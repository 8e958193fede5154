"""Every parameter in a tag of its own, which has its name; docs/tools.md lists who writes so."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat, ParameterTags

TAGGED_PARAMETERS = CallFormat(
    name="tagged parameters",
    signs=("<tool_call>", "<function=", "<parameter="),
    trigger="<tool_call>",
    before_name="\n<function=",
    before_arguments=">\n",
    after_arguments="</function>\n</tool_call>",
    between="\n<tool_call>\n<function=",
    tags=ParameterTags("<parameter=", ">\n", "\n</parameter>", "\n"),
)

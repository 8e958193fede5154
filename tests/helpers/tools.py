"""Tools, templates that know them, and random schemas of arguments."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.tools.tool import Tool, ToolSet
from tests.helpers import tiny

WEATHER = Tool(
    "get_weather",
    "The weather in a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    },
)
TIME = Tool("get_time", "The time now")
TOOLS = (WEATHER, TIME)

TAGGED_TEMPLATE = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n\\nCalls stand in tags:\\n<tool_call>\\n" }}
{{- "{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {%- set call = call.function %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

PARAMETERS_TEMPLATE = """{{- '<|start|>system\\nBe brief.<|eot|>' }}
{%- if tools is not none %}
    {{- '<|start|>user\\nAnswer with {"name": function name, "parameters": its arguments}.\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- "\\n" }}{%- endfor %}
    {{- messages[0]['content'] + '<|eot|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('Only one call at once!') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + (call.arguments | tojson) + '}<|eot|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>ipython\\n' + (message.content | tojson) + '<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '\\n' + message.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{%- endif %}"""

LIST_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == (messages | selectattr('role', 'equalto', 'user') | list | last) %}
            {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('Ids of nine, please!') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id | length != 9 %}{{- raise_exception('Ids of nine, please!') }}{%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool!') }}
    {%- endif %}
{%- endfor %}"""

TEXT_ARGUMENTS_TEMPLATE = """{%- for tool in tools or [] %}
    {{- tool.function.name + ' ' + tool.function.description }}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.content is none %}
        {%- for call in message.tool_calls %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments }}
        {%- endfor %}
    {%- else %}
        {{- '<' + message.role + '>' + message.content }}
    {%- endif %}
{%- endfor %}{{- '<assistant>' }}"""

TAGGED_PARAMETERS_TEMPLATE = """{%- if tools is iterable and tools | length > 0 %}
    {{- '<|im_start|>system\\nThese functions are there:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n<function>\\n<name>' + tool.function.name + '</name>' }}
        {{- '\\n<description>' + tool.function.description + '</description>' }}
        {%- for name, fields in tool.function.parameters.properties | items %}
            {{- '\\n<parameter>\\n<name>' + name + '</name>\\n</parameter>' }}
        {%- endfor %}
        {{- '\\n</function>' }}
    {%- endfor %}
    {{- '\\n</tools>\\nCall them so:\\n<tool_call>\\n<function=its_name>\\n<parameter=its_parameter>\\nvalue' }}
    {{- '\\n</parameter>\\n</function>\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls is defined and message.tool_calls is iterable %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content is string and message.content | trim | length > 0 %}
            {{- '\\n' + message.content | trim + '\\n' }}
        {%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
            {%- for name, value in call.function.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {%- set value = value if value is string else value | tojson | safe %}
                {{- value + '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

TAGGED_PAIRS_TEMPLATE = """[gMASK]<sop>
{%- if tools -%}
<|system|>
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>
Calls look so:
<tool_call>{name}
<arg_key>{key}</arg_key>
<arg_value>{value}</arg_value>
</tool_call>
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
<|assistant|>
{%- if m.content is string and m.content %}{{ '\\n' + m.content.strip() }}{% endif -%}
{% for call in m.tool_calls or [] %}
{{ '\\n<tool_call>' + call.function.name }}
{% set arguments = call.function.arguments %}
{% for k, v in arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>
{%- endfor %}
{%- elif m.role == 'tool' -%}
<|observation|>
<tool_response>
{{ m.content }}
</tool_response>
{%- else -%}
<|{{ m.role }}|>
{{ m.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' -}}
{%- endif -%}"""

CLOSE_PAIRS_TEMPLATE = """
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- if tools %}Calls: <tool_call>{name}<arg_key>{key}</arg_key><arg_value>{value}</arg_value></tool_call>{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>' + (m.content or '') }}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>' + call.function.name }}
            {%- for k, v in call.function.arguments.items() %}
                {{- '<arg_key>' + k + '</arg_key><arg_value>' + (v if v is string else v | tojson) + '</arg_value>' }}
            {%- endfor %}
            {{- '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content }}
    {%- endif %}
{%- endfor %}{{- '<|assistant|>' }}"""

MARKERS = ("[TOOL_CALLS]", "[ARGS]")
TOOL_TEMPLATES = {
    "tagged": TAGGED_TEMPLATE,
    "tagged parameters": TAGGED_PARAMETERS_TEMPLATE,
    "tagged pairs": TAGGED_PAIRS_TEMPLATE,
    "close tagged pairs": CLOSE_PAIRS_TEMPLATE,
    "named parameters": PARAMETERS_TEMPLATE,
    "marked list": LIST_TEMPLATE,
    "marked name": TEXT_ARGUMENTS_TEMPLATE,
}
"""By the name of the format that they show; written in the ways that models' own are."""


def random_tools(dice: random.Random, count: int) -> ToolSet:
    """Tools with arguments of every kind, bounded so that a random model comes to an end."""
    return ToolSet(
        tuple(Tool(f"tool_{index}", parameters=_object(dice, 2)) for index in range(count)), "required", None, True
    )


def _object(dice: random.Random, depth: int) -> dict[str, Any]:
    names = dice.sample(["city", "count", "unit", "tags", "place", "exact", "due"], dice.randint(0, 4))
    properties = {name: _value(dice, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": [name for name in names if dice.random() < 0.7]}


def _value(dice: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": dice.randint(0, 6)},
        {"type": "integer", "minimum": -5, "maximum": dice.randint(0, 300)},
        {"type": "boolean"},
        {"enum": ["a", "B ", 3, None, 'x"}']},
        {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{1,3}$"}]},
    ]
    if depth > 0:
        kinds += [_object(dice, depth), {"type": "array", "items": _value(dice, depth - 1), "maxItems": 2}]
    return dice.choice(kinds)


def write_talker(folder: Path, form: str, plain: str, seed: int) -> Path:
    """Write the bundle of a random model with the template of a format of calls; `plain` where it has none."""
    checkpoint = folder / "model"
    tiny.write_base(checkpoint, tiny.tiny_config(vocab_size=302, context_length=8192), seed=seed)
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens(list(MARKERS))
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    config = read_json(checkpoint / "tokenizer_config.json")
    template = TOOL_TEMPLATES.get(form, plain)
    write_json(checkpoint / "tokenizer_config.json", {**config, "chat_template": template})
    attach(checkpoint, checkpoint)
    export(checkpoint, folder / "bundle")
    return folder / "bundle"

"""Messages with calls become what each kind of template expects, and words where it expects none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.files import write_json
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.tools.formats import FORMATS, format_of
from recycle_onnx.runtime.tools.tool import Tool, ToolSet
from recycle_onnx.runtime.tools.tool_chat import ToolChat
from tests.helpers import tiny
from tests.helpers.templates import CHATML, GEMMA, TEMPLATES
from tests.helpers.tools import TOOL_TEMPLATES, TOOLS

OFFERED = ToolSet(TOOLS)
ASKED = {"role": "user", "content": "Is it warm?"}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_0123456789",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_0123456789", "content": "21"}


def chat_of(template: str, folder: Path) -> ToolChat:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    return ToolChat(ChatTemplate.for_tools(folder), tiny.tokenizer())


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_a_template_shows_its_format(name: str) -> None:
    assert format_of(TOOL_TEMPLATES[name]).name == name
    assert name in [form.name for form in FORMATS]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_tools_has_the_generic_format(name: str) -> None:
    assert format_of(TEMPLATES[name]).name == "generic"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tool_call>\\n<function=name>\\n<parameter=city>", "tagged parameters"),
        ("<tool_call>{name}\n<arg_key>{k}</arg_key>\n<arg_value>", "tagged pairs"),
        ("<tool_call>{name}<arg_key>{k}</arg_key><arg_value>", "close tagged pairs"),
        ("<seed:tool_call>\\n<function=name>\\n<parameter=city>", "generic"),
        ("<tool_call>{name}({k}={v})</tool_call>", "generic"),
    ],
)
def test_what_stands_in_tags_is_a_format_of_its_own(template: str, name: str) -> None:
    assert format_of(template).name == name


def test_a_space_before_the_list_is_kept() -> None:
    assert format_of("{{ '[TOOL_CALLS] [' }}").written([("f", {})]) == '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_a_template_that_knows_tools_gets_them(name: str, tmp_path: Path) -> None:
    chat = chat_of(TOOL_TEMPLATES[name], tmp_path)
    prompt = chat.render([ASKED], OFFERED)
    assert "The weather in a city" in prompt
    assert "You can call functions" not in prompt
    assert "The weather" not in chat.render([ASKED], ToolSet(TOOLS, "none"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tagged", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'),
        ("named parameters", '<|start|>assistant\n{"name": "get_weather", "parameters": {"city": "Köln"}}<|eot|>'),
        ("marked list", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln"}, "id": "'),
        ("marked name", '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln"}'),
        (
            "tagged parameters",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            "tagged pairs",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n</tool_call>",
        ),
        ("close tagged pairs", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Köln</arg_value></tool_call>"),
    ],
)
def test_calls_and_results_are_what_the_template_expects(name: str, expected: str, tmp_path: Path) -> None:
    """Arguments are objects or text, ids long or short, and what has no words null or empty: each as it likes it."""
    prompt = chat_of(TOOL_TEMPLATES[name], tmp_path).render([ASKED, CALLED, RESULT], OFFERED)
    assert expected in prompt
    assert "21" in prompt[prompt.index(expected) :]


def test_short_ids_stay_and_others_are_shortened_alike(tmp_path: Path) -> None:
    chat = chat_of(TOOL_TEMPLATES["marked list"], tmp_path)
    call = {**CALLED["tool_calls"][0], "id": "abc123XYZ"}
    prompt = chat.render([ASKED, {**CALLED, "tool_calls": [call]}, {**RESULT, "tool_call_id": "abc123XYZ"}])
    assert prompt.count('"abc123XYZ"') == 2
    prompt = chat.render([ASKED, CALLED, RESULT])
    short = prompt.partition('"id": "')[2][:9]
    assert prompt.count(f'"{short}"') == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tagged", {None: True, True: True, False: False}),
        ("named parameters", {None: False, True: False, False: False}),  # its template takes no more than one
        ("chatml", {None: False, True: True, False: False}),  # and this one knows none
    ],
)
def test_how_many_calls_an_answer_may_have(name: str, expected: dict[bool | None, bool], tmp_path: Path) -> None:
    chat = chat_of({**TOOL_TEMPLATES, **TEMPLATES}[name], tmp_path)
    for parallel, several in expected.items():
        tools = ToolSet(TOOLS, parallel=parallel)
        assert ("call){0,15}" in chat.use(tools).grammar.source) is several
        if name == "chatml":
            assert ("Several calls follow" in chat.render([ASKED], tools)) is several


@pytest.mark.parametrize("template", [CHATML, GEMMA], ids=["chatml", "gemma"])
def test_others_are_told_in_words(template: str, tmp_path: Path) -> None:
    prompt = chat_of(template, tmp_path).render([ASKED, CALLED, RESULT, RESULT, ASKED | {"role": "assistant"}, ASKED])
    assert '{"name": "get_weather", "arguments": {"city": "Köln"}}' in prompt
    assert "user\nResult of get_weather: 21\nResult of get_weather: 21<" in prompt
    told = chat_of(template, tmp_path).render([ASKED], OFFERED)
    assert '{"name": "get_weather", "description": "The weather in a city", "parameters": {"type": "object"' in told
    assert '{"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}' in told
    with_system = chat_of(template, tmp_path).render([{"role": "system", "content": "Be kind."}, ASKED], OFFERED)
    assert (
        with_system.index("Be kind.") < with_system.index("You can call functions") < with_system.index("Is it warm?")
    )


def test_where_no_system_message_is_allowed_the_first_turn_tells_of_tools(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    told = chat_of(template, tmp_path).render([ASKED], OFFERED)
    assert told.startswith("<user>You can call functions")
    assert told.endswith("\n\nIs it warm?")


def test_the_plain_template_is_told_in_words_too(tmp_path: Path) -> None:
    chat = ToolChat(ChatTemplate.find(tmp_path, "plain"), tiny.tokenizer())
    text = chat.render([ASKED, CALLED, RESULT], OFFERED)
    assert text.startswith("You can call functions")
    assert text.endswith(
        'User: Is it warm?\nAssistant: {"name": "get_weather", "arguments": {"city": "Köln"}}\n'
        "User: Result of get_weather: 21\nAssistant:"
    )


def test_words_before_a_call_stay(tmp_path: Path) -> None:
    for number, template in enumerate((TOOL_TEMPLATES["tagged"], CHATML)):
        folder = tmp_path / str(number)
        folder.mkdir()
        prompt = chat_of(template, folder).render([ASKED, {**CALLED, "content": "Let me see."}, RESULT], OFFERED)
        assert "Let me see.\n" in prompt


def test_a_template_for_tools_is_taken_for_them(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": TOOL_TEMPLATES["tagged"]}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert ChatTemplate.for_tools(tmp_path).name == "tool_use"
    assert ChatTemplate.find(tmp_path).name == "default"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert ChatTemplate.for_tools(tmp_path).render([ASKED]) == "three"


def test_variables_reach_the_template(tmp_path: Path) -> None:
    chat = chat_of(TOOL_TEMPLATES["tagged"], tmp_path)
    assert chat.render([ASKED], OFFERED, {"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")
    assert chat.render([ASKED], OFFERED).endswith("assistant\n")


@pytest.mark.parametrize("arguments", ["{", "[]", '"a"', 3])
def test_arguments_that_are_no_object_are_refused(arguments: Any, tmp_path: Path) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    with pytest.raises(InputError, match=r"the arguments of a tool call are .*; expected JSON of an object"):
        chat_of(CHATML, tmp_path).render([ASKED, {**CALLED, "tool_calls": [call]}])


def test_tools_in_the_forms_that_others_write() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    expected = Tool("f", "d", {"type": "object"}, strict=True)
    assert Tool.of({"type": "function", "function": function}) == Tool.of(function) == Tool.of(expected) == expected
    assert Tool.of({"name": "f", "description": None}) == Tool("f")
    assert ToolSet.of([function], "f") == ToolSet((expected,), "required", ("f",), parallel=False)
    assert ToolSet.of([function], "none").callable == ()


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([{"name": "a b"}], "auto", "a tool's name is 'a b'; expected 1 to 128 letters"),
        ([{"name": "f", "parameters": {"type": "array"}}], "auto", "expected the JSON schema of an object"),
        ([{"name": "f", "parameters": 3}], "auto", "expected the JSON schema of an object"),
        ([{"name": "f", "description": 3}], "auto", "the description of tool 'f' is 3; expected a text"),
        ([{"name": "f"}, {"name": "f"}], "auto", "two tools are called 'f'"),
        ([{"name": "f"}], "g", "no tool is called 'g'; expected one of: f"),
        ([], "required", "a call is required, and there is no tool to call"),
        ([3], "auto", "a tool is 3; expected an object with name, description and parameters"),
    ],
)
def test_tools_that_make_no_sense_are_refused(tools: list[Any], choice: str, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        ToolSet.of(tools, choice)
    assert words in str(refusal.value)

"""Parameters in tags: strings as they are, all else as JSON, and nothing that their schema forbids."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.structured import Constraints
from recycle_onnx.runtime.tools.arguments import TaggedArguments
from recycle_onnx.runtime.tools.call_format import CallFormat, ParameterTags
from recycle_onnx.runtime.tools.formats.tagged_pairs import TAGGED_PAIRS, TAGGED_PAIRS_CLOSE
from recycle_onnx.runtime.tools.formats.tagged_parameters import TAGGED_PARAMETERS
from recycle_onnx.runtime.tools.grammar import GrammarWriter
from recycle_onnx.runtime.tools.parameters import parameters_of
from recycle_onnx.runtime.tools.reader import CallReader
from recycle_onnx.runtime.tools.schema import enforced
from recycle_onnx.runtime.tools.tool import Tool, ToolSet
from recycle_onnx.runtime.tools.tool_chat import ToolChat
from tests.helpers import tiny
from tests.helpers.tools import random_tools

TAGGED_FORMS = (TAGGED_PARAMETERS, TAGGED_PAIRS, TAGGED_PAIRS_CLOSE)
forms = pytest.mark.parametrize("form", TAGGED_FORMS, ids=lambda form: form.name)

TEXT = {"type": "string"}
NULLABLE = {"anyOf": [TEXT, {"type": "null"}]}
UNIT = {"$ref": "#/$defs/Unit"}
KINDS: list[tuple[Any, str, Any]] = [
    (TEXT, "3", "3"),
    (TEXT, "null", "null"),
    (TEXT, "", ""),
    (TEXT, ' a "b"\\\n<c> ', ' a "b"\\\n<c> '),
    (TEXT, "</paramete", "</paramete"),
    ({"type": "integer"}, "3", 3),
    ({"type": "number"}, "-2.5e3", -2500.0),
    ({"type": "boolean"}, "true", True),
    ({"type": "array", "items": TEXT}, '["a", "]</arg_value>"]', ["a", "]</arg_value>"]),
    ({"type": "object", "properties": {"a": TEXT}}, '{"a": "</parameter>\\"}"}', {"a": '</parameter>"}'}),
    (NULLABLE, "null", None),
    (NULLABLE, "nullable", "nullable"),
    (NULLABLE, "nul", "nul"),
    ({"type": ["string", "null"], "maxLength": 2}, "null", None),
    ({"type": ["integer", "string"]}, "12", 12),
    ({"type": ["integer", "string"]}, "12 apples", "12 apples"),
    ({"type": ["integer", "string"]}, "1.5", "1.5"),
    ({"type": ["integer", "string"]}, "007", "007"),
    ({"enum": ["a", "B ", 3, None, 'x"}']}, "3", 3),
    ({"enum": ["a", "B ", 3, None, 'x"}']}, 'x"}', 'x"}'),
    ({"enum": ["3", 4]}, "3", "3"),
    ({"const": "fixed"}, "fixed", "fixed"),
    (UNIT, "celsius", "celsius"),
    ({"anyOf": [UNIT, {"type": "null"}]}, "null", None),
    ({"type": "string", "pattern": "^[0-9]+$"}, '"3"', "3"),
    ({"type": "string", "format": "date"}, '"2024-06-27"', "2024-06-27"),
    ({"anyOf": [{"type": "string", "pattern": "^a$"}, {"type": "null"}]}, '"a"', "a"),
    ({"anyOf": [TEXT, {"type": "integer", "maximum": 5}]}, '"7"', "7"),
    ({}, "[1, 2]", [1, 2]),
    ({}, "[1, 2", "[1, 2"),
    ({}, "words", "words"),
]
"""Schemas, values as a model writes them, and what they are."""


def tool_of(schema: Any, **more: Any) -> Tool:
    definitions = {"Unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}
    return Tool("f", parameters={"type": "object", "properties": {"a": schema}, "$defs": definitions, **more})


def written(form: CallFormat, *values: tuple[str, str]) -> str:
    assert form.tags
    parameters = "".join(form.tags.opening(name) + text + form.tags.after_value + form.tags.after
                         for name, text in values)  # fmt: skip
    return form.opening("f") + parameters + form.after_arguments


def read(form: CallFormat, tool: Tool, pieces: list[str]) -> str:
    reader = CallReader(form, ToolSet((tool,), "required"))
    for piece in pieces:
        reader.push(piece)
    reader.end()
    (call,) = reader.calls
    assert reader.complete
    return call.arguments


def allowed(form: CallFormat, tool: Tool, text: str) -> bool:
    tokenizer = tiny.tokenizer()
    grammar = GrammarWriter(form, tokenizer).write(ToolSet((tool,), "required", parallel=False))
    follower = Constraints(tokenizer, tokenizer.get_vocab_size()).prepare(grammar, frozenset([0])).start(np.array([]))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return follower.fitting(ids) == len(ids)


@forms
@pytest.mark.parametrize(("schema", "text", "value"), KINDS, ids=str)
def test_values_have_the_types_of_their_schema(form: CallFormat, schema: Any, text: str, value: Any) -> None:
    tool, whole = tool_of(schema), written(form, ("a", text))
    for pieces in ([whole], list(whole)):
        assert json.loads(read(form, tool, pieces)) == {"a": value}
    assert allowed(form, tool, whole)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "maxLength": 3}, "abcd"),
        ({"type": "string", "minLength": 3}, "ab"),
        (TEXT, "a\n</parameter>"),
        ({"type": "integer"}, "three"),
        ({"type": "integer", "maximum": 5}, "7"),
        ({"type": "boolean"}, "True"),
        ({"enum": ["a", "b"]}, "c"),
        ({"enum": ["a", "b"]}, '"a"'),
        ({"type": "string", "pattern": "^[0-9]+$"}, "3"),
        ({"type": "string", "pattern": "^[0-9]+$"}, '"a"'),
        ({"type": ["string", "null"], "maxLength": 2}, "nullx"),
        ({"type": "object", "properties": {"a": TEXT}}, '{"b": "c"}'),
        (UNIT, "kelvin"),
        ({"anyOf": [TEXT, {"type": "integer", "maximum": 5}]}, "7"),
    ],
    ids=str,
)
def test_what_a_schema_forbids_cannot_be_written(schema: Any, text: str) -> None:
    for form in TAGGED_FORMS:
        if form.tags and not (form.tags.after_value == "</arg_value>" and "</parameter>" in text):
            assert not allowed(form, tool_of(schema), written(form, ("a", text)))


@forms
def test_parameters_stand_in_order_and_once(form: CallFormat) -> None:
    listed = {"type": "object", "properties": {"a": TEXT, "ab": TEXT, "c": TEXT}, "required": ["ab", "d"]}
    tool = Tool("f", parameters=listed)
    one = {name: (name, "x") for name in ("a", "ab", "c", "d", "e")}
    for names, expected in [
        ("ab d", True), ("a ab d", True), ("a ab c d", True), ("ab c d", True),
        ("", False), ("a", False), ("ab", False), ("ab a d", False), ("ab ab d", False), ("ab d e", False),
    ]:  # fmt: skip
        text = written(form, *(one[name] for name in names.split()))
        assert allowed(form, tool, text) is expected, names
        assert not expected or json.loads(read(form, tool, list(text))) == dict.fromkeys(names.split(), "x")
    assert read(form, Tool("f"), [written(form)]) == "{}"


def test_a_name_that_begins_another_is_told_from_it() -> None:
    tools = ToolSet((Tool("get"), Tool("get_time")), "required")
    for form in TAGGED_FORMS:
        text = form.written([("get_time", {}), ("get", {}), ("get_time", {})])
        reader = CallReader(form, tools)
        for piece in text:
            reader.push(piece)
        assert [call.name for call in reader.calls] == ["get_time", "get", "get_time"]


def test_words_are_streamed_before_their_end() -> None:
    (parameter,) = parameters_of(enforced(tool_of(NULLABLE)))
    assert TAGGED_PARAMETERS.tags
    reader = TaggedArguments([parameter], TAGGED_PARAMETERS.tags, TAGGED_PARAMETERS.after_arguments)
    held, made = "", []
    for piece in ("<parameter=a>\n", "nu", "mber", " one\n", "</par", "ty>", "\n</parameter>\n", "</function>\n</tool"):
        json_piece, held = reader.read(held + piece)
        made.append(json_piece)
    assert made == ['{"a": ', "", '"number', " one", "", "\\n</party>", '"', ""]


PATTERNS = {
    "tagged parameters": r"<parameter=(\w+)>\n(.*?)\n</parameter>",
    "tagged pairs": r"<arg_key>(\w+)</arg_key>\n<arg_value>(.*?)</arg_value>",
    "close tagged pairs": r"<arg_key>(\w+)</arg_key><arg_value>(.*?)</arg_value>",
}


@forms
def test_arguments_survive_being_written(form: CallFormat) -> None:
    """What is written from arguments is read as them, by this reader and, pair by pair, by a regular expression."""
    dice = random.Random(3)
    for _ in range(30):
        for tool in random_tools(dice, 3).tools:
            arguments = {name: sample(one, dice) for name, one in tool.parameters["properties"].items()}
            assert form.tags
            named = Tool("f", parameters=tool.parameters)
            quoting = {one.name for one in parameters_of(enforced(named)) if one.words is None}
            texts = [(name, json.dumps(value) if name in quoting or not isinstance(value, str) else value)
                     for name, value in arguments.items()]  # fmt: skip
            text = written(form, *texts)
            assert json.loads(read(form, named, [text])) == arguments
            assert re.findall(PATTERNS[form.name], text, re.DOTALL) == texts


def sample(schema: Any, dice: random.Random) -> Any:
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if "anyOf" in schema:
        return dice.choice([None, "abc"])
    values = {
        "string": "é\n" * (schema.get("maxLength", 0) // 2), "integer": 3, "boolean": False,
        "array": [], "object": {"x": '<"\\n>'},
    }  # fmt: skip
    return values[schema["type"]]


@pytest.mark.parametrize(
    "schema",
    [
        True, False, 3, {"enum": 3}, {"enum": []}, {"anyOf": 3}, {"anyOf": []}, {"type": {}}, {"type": [3]},
        {"type": "string", "maxLength": "x"}, {"$ref": "#/$defs/None"}, {"$ref": 3}, {"const": {}},
        {"$ref": "#/$defs/Circle"},
    ],
    ids=str,
)  # fmt: skip
def test_schemas_that_make_no_sense_are_no_crash(schema: Any) -> None:
    circle = {"Circle": {"anyOf": [{"$ref": "#/$defs/Circle"}, TEXT]}}
    tool = Tool("f", parameters={"type": "object", "properties": {"a": schema}, "$defs": circle})
    assert [one.name for one in parameters_of(enforced(tool))] == ["a"]
    for keyword in ("properties", "required", "$defs"):
        parameters_of(enforced(Tool("f", parameters={"type": "object", keyword: schema})))


def test_a_strict_tool_that_tags_cannot_follow_is_refused() -> None:
    either = {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "anyOf": [{"required": ["a"]}]}
    chat = ToolChat.__new__(ToolChat)
    for form, strict in ((TAGGED_PARAMETERS, True), (TAGGED_PARAMETERS, False)):
        chat.form = form
        tools = ToolSet((Tool("f", parameters=either, strict=strict),))
        if strict:
            with pytest.raises(InputError, match=r"the parameters of tool 'f' have 'anyOf', which cannot be enforced"):
                chat.check(tools)
        else:
            chat.check(tools)


def test_tags_around_a_value() -> None:
    tags = ParameterTags("<", ">", "</>", ";")
    assert tags.written({"a": "b", "c": [1]}) == "<a>b</>;<c>[1]</>;"

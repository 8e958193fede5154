"""However a text is cut into pieces, its calls are read the same; and what is no call is said as it is."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest

from recycle_onnx.runtime.tools.call_format import CallFormat
from recycle_onnx.runtime.tools.formats import FORMATS
from recycle_onnx.runtime.tools.formats.generic import GENERIC
from recycle_onnx.runtime.tools.formats.tagged import TAGGED
from recycle_onnx.runtime.tools.reader import AnswerPart, AnswerText, CallArguments, CallReader, CallStart
from recycle_onnx.runtime.tools.tool import Mode, ToolSet
from tests.helpers.tools import TOOLS

ALL = [*FORMATS, GENERIC]
HARD = {"city": 'a"}]{\\ \n</tool_call>'}
CALLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "one": [("get_weather", HARD)],
    "two": [("get_weather", HARD), ("get_time", {})],
    "three": [("get_time", {}), ("get_time", {}), ("get_weather", {"city": "Köln", "unit": "celsius"})],
}
THOUGHT = "<think>\nOr <tool_call>?\n</think>\n\n"


def reader_of(form: CallFormat, mode: Mode = "auto", **written_for: Any) -> CallReader:
    return CallReader(form, ToolSet(TOOLS, mode), **written_for)


def read(reader: CallReader, pieces: list[str]) -> list[AnswerPart]:
    parts = [part for piece in pieces for part in reader.push(piece)]
    return [*parts, *reader.end()]


def as_json(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def cut(text: str, dice: random.Random) -> list[str]:
    places = sorted({0, len(text), *(dice.randrange(len(text) + 1) for _ in range(dice.randrange(12)))})
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("form", ALL, ids=lambda form: form.before_name + form.name)
def test_calls_are_read_however_they_come(form: CallFormat, mode: Mode, calls: str) -> None:
    words = "Let me look. " if mode == "auto" and not form.beginning else ""
    text = words + form.written(CALLS[calls])
    dice = random.Random(1)
    for pieces in (*([text[n : n + size] for n in range(0, len(text), size)] for size in (1, 2, 99999)),
                   *(cut(text, dice) for _ in range(50))):  # fmt: skip
        reader = reader_of(form, mode)
        parts = read(reader, pieces)
        assert reader.text == words.rstrip()
        assert [call.name for call in reader.calls] == [name for name, _ in CALLS[calls]]
        assert [call.arguments for call in reader.calls] == [as_json(arguments) for _, arguments in CALLS[calls]]
        assert reader.finish_reason("stop") == "tool_calls"
        assert_parts_are_the_whole(parts, reader)


def assert_parts_are_the_whole(parts: list[AnswerPart], reader: CallReader) -> None:
    assert "".join(part.text for part in parts if isinstance(part, AnswerText)) == reader.text
    starts = [part for part in parts if isinstance(part, CallStart)]
    assert [(start.index, start.id, start.name) for start in starts] == [
        (index, call.id, call.name) for index, call in enumerate(reader.calls)
    ]
    for index, call in enumerate(reader.calls):
        pieces = [part.text for part in parts if isinstance(part, CallArguments) and part.index == index]
        assert "".join(pieces) == call.arguments
    assert len({call.id for call in reader.calls}) == len(starts)


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.before_name + form.name)
def test_a_call_that_is_cut_short_is_no_text(form: CallFormat) -> None:
    text = form.written(CALLS["two"])
    for size in range(len(text)):
        reader = reader_of(form, "required")
        read(reader, [text[:size]])
        assert reader.text == ""
        assert reader.finish_reason("length") == "length"
        for call, (_, arguments) in zip(reader.calls, CALLS["two"], strict=False):
            assert as_json(arguments).startswith(call.arguments)
    reader = reader_of(form)
    before = len(form.opening("get_weather"))
    read(reader, [text[: before - 1]])
    assert (reader.text, reader.calls, reader.finish_reason("stop")) == ("", [], "stop")
    reader = reader_of(form)
    read(reader, [text[: text.index("a", before + 1) + 1]])
    ((name, arguments),) = [(call.name, call.arguments) for call in reader.calls]
    assert name == "get_weather"
    assert as_json(HARD).startswith(arguments)
    assert not reader.complete
    assert reader.finish_reason("stop") == "stop"


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Hello.\n\n", "<", "<tool", "a <tool_cal", "{", ' {"na', '{"na me": "', '{"name": 3}',
        '{ "other": {}}', "[TOOL_", 'Say {"name": "get_time", "arguments": {}} then', "1 < 2", "\n{",
    ],
)  # fmt: skip
def test_what_is_no_call_is_said_as_it_is(text: str) -> None:
    forms = [form for form in ALL if form.trigger not in text or form.beginning]
    for form in forms:
        for pieces in ([text], list(text)):
            reader = reader_of(form)
            parts = read(reader, pieces)
            assert reader.text == text
            assert not reader.calls
            assert reader.finish_reason("stop") == "stop"
            assert_parts_are_the_whole(parts, reader)


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("form", ALL, ids=lambda form: form.before_name + form.name)
def test_a_thought_is_text_and_nothing_in_it_a_call(form: CallFormat, mode: Mode) -> None:
    thought = THOUGHT.replace("<tool_call>", form.written(CALLS["one"]))
    text = thought + form.written(CALLS["two"])
    for pieces in ([text], list(text)):
        reader = reader_of(form, mode, thought="possible")
        read(reader, pieces)
        assert reader.text.rstrip() == thought.rstrip()
        assert len(reader.calls) == 2
        begun = reader_of(form, mode, thought="begun")
        read(begun, [piece for piece in [text.removeprefix("<think>")] if piece])
        assert begun.text.rstrip() == thought.removeprefix("<think>").rstrip()
        assert len(begun.calls) == 2


def test_white_space_in_bare_json_is_as_the_model_likes_it() -> None:
    for opening in ('{"name": "', '{"name":"', '\n {\n  "name" : "'):
        reader = reader_of(GENERIC)
        read(reader, list(opening + 'get_time", "arguments": {}}'))
        assert (reader.text, [call.name for call in reader.calls]) == ("", ["get_time"])


def test_an_answer_of_a_schema_may_speak_of_calls() -> None:
    text = '{"text": "<tool_call>"}'
    reader = reader_of(TAGGED, described=True)
    read(reader, list(text))
    assert (reader.text, reader.calls) == (text, [])
    reader = reader_of(TAGGED, described=True)
    read(reader, list(TAGGED.written(CALLS["one"])))
    assert (reader.text, len(reader.calls)) == ("", 1)


def test_without_tools_all_is_text() -> None:
    reader = CallReader(TAGGED, ToolSet(TOOLS, "none"))
    assert reader.push("<tool_call>") == [AnswerText("<tool_call>")]

"""What a client is told of its mistake says what it sent, what was expected, and what it may have meant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import to_json

from recycle_onnx.serve import schema
from recycle_onnx.serve.anthropic import MessagesRequest
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.ollama_objects import OllamaChatRequest
from recycle_onnx.serve.response_objects import ResponsesRequest
from recycle_onnx.serve.schema import AnyRequest, ChatRequest, CompletionRequest

USER = [{"role": "user", "content": "the cat"}]
IMAGE = [{"role": "user", "content": [{"type": "image", "source": {}}]}]


def told(kind: type[AnyRequest], fields: dict[str, Any]) -> str:
    with pytest.raises(ApiError) as refused:
        schema.parse(to_json(fields), kind)
    return str(refused.value)


@pytest.mark.parametrize(("value", "shown"), [("5", "'5'"), (1.5, "1.5"), (True, "true")], ids=repr)
def test_a_number_of_tokens_that_is_none_is_told_that_it_may_be_one(value: object, shown: str) -> None:
    line = f"max_tokens is {shown}; expected: a valid integer or -1"
    assert told(CompletionRequest, {"prompt": "a", "max_tokens": value}) == line


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (MessagesRequest, {"messages": IMAGE, "max_tokens": 1}, "messages[0].content[0] is of the type 'image'"),
        (ResponsesRequest, {"input": [{"type": "reasoning"}]}, "input[0] is of the type 'reasoning'"),
        (ResponsesRequest, {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type is 'web_search'"),
        (
            MessagesRequest,
            {"messages": USER, "max_tokens": 1, "tools": [{"type": "web_search_1", "name": "web_search"}]},
            "tools[0].type is 'web_search_1'; expected: 'custom'",
        ),
        (ChatRequest, {"messages": USER, "tool_choice": {"type": "function"}}, "tool_choice.function is missing"),
        (ChatRequest, {"messages": USER, "tool_choice": {"type": "some"}}, "tool_choice.type is 'some'; expected: "),
    ],
)  # fmt: skip
def test_of_an_object_of_another_type_the_type_is_named(
    kind: type[AnyRequest], fields: dict[str, Any], line: str
) -> None:
    assert told(kind, fields).startswith(line)


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        (CompletionRequest, "max_new_tokens", "did you mean max_tokens?"),
        (CompletionRequest, "n_predict", "did you mean max_tokens?"),
        (ChatRequest, "max_new_tokens", "did you mean max_completion_tokens?"),
        (ResponsesRequest, "max_tokens", "did you mean max_output_tokens?"),
        (ChatRequest, "temprature", "did you mean temperature?"),
        (ChatRequest, "repeat_penalty", "did you mean repetition_penalty?"),
        (ChatRequest, "cat", "leave it out"),
        (OllamaChatRequest, "max_tokens", "did you mean options.num_predict?"),
        (OllamaChatRequest, "temperature", "did you mean options.temperature?"),
    ],
)
def test_an_unknown_field_is_told_which_one_was_meant(kind: type[AnyRequest], name: str, advice: str) -> None:
    said = {CompletionRequest: {"prompt": "a"}, ResponsesRequest: {"input": "a"}}.get(kind, {"messages": USER})
    assert told(kind, {**said, name: 3}) == f"{name} is not served here: {advice}"


def test_a_text_for_an_object_is_told_that_it_is_none() -> None:
    fields = {"messages": USER, "response_format": "json"}
    assert told(ChatRequest, fields) == "response_format is 'json'; expected: a JSON object"


def test_lengths_are_told_in_plain_words() -> None:
    assert told(ChatRequest, {"messages": []}) == "messages is []; expected: at least one item"
    assert told(CompletionRequest, {"prompt": ""}) == "prompt is ''; expected: at least one character"


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (ChatRequest, {"messages": USER, "store": True}, "store is true; expected: false"),
        (ChatRequest, {"messages": [{"role": "user", "content": None}]}, "messages[0].content is null; expected: "),
        (ChatRequest, {"messages": USER, "stop": [None]}, "stop[0] is null; expected: a valid string"),
        (CompletionRequest, {"prompt": {"a": [True, None]}}, 'prompt is {"a":[true,null]}; expected: '),
        (ChatRequest, {"messages": USER, "seed": "é" * 99}, f"seed is '{'é' * 56}…; expected: "),
    ],
)
def test_values_are_shown_as_they_were_sent(kind: type[AnyRequest], fields: dict[str, Any], line: str) -> None:
    assert told(kind, fields).startswith(line)


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (OllamaChatRequest, {"options": {"temprature": 1}}, "options.temprature is not served here: did you mean "
         "temperature?"),
        (OllamaChatRequest, {"options": {"n_predict": 1}}, "options.n_predict is not served here: did you mean "
         "num_predict?"),
        (ChatRequest, {"messages": [{"role": "user", "contnt": "a"}]}, "messages[0].contnt is not served here: "
         "did you mean content?"),
        (ChatRequest, {"messages": USER, "stream_options": {"include_usge": True}}, "stream_options.include_usge is "
         "not served here: did you mean include_usage?"),
        (ChatRequest, {"messages": USER, "tools": [{"type": "function", "function": {"name": "f", "strct": True}}]},
         "tools[0].function.strct is not served here: did you mean strict?"),
        (ChatRequest, {"messages": USER, "stream_options": {"cat": True}}, "stream_options.cat is not served here: "
         "leave it out"),
    ],
)  # fmt: skip
def test_a_field_within_an_object_is_told_which_one_was_meant(
    kind: type[AnyRequest], fields: dict[str, Any], line: str
) -> None:
    assert told(kind, {"messages": USER, **fields}) == line

"""Tools through the openai client: what a model calls comes as calls, whole or streamed, and never as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from openai import BadRequestError, OpenAI

import recycle_onnx
from recycle_onnx.runtime.model import Model
from tests.helpers.tools import TOOL_TEMPLATES, TOOLS, write_talker
from tests.serve.conftest import NAME, Running, serving

pytest.importorskip("llguidance")

ASKED: Any = [{"role": "user", "content": "the cat"}]
OFFERED: Any = [tool.as_json() for tool in TOOLS]
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}
STRATEGIES = ("full", "verify", "auto", "lookup", "alternate")
TIME: Any = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module", params=["generic", *(name for name in TOOL_TEMPLATES if "pairs" not in name)])
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model, and a chat template with tools or without."""
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bundle = write_talker(tmp_path_factory.mktemp("talker"), request.param, plain, seed=7)
    with recycle_onnx.load(bundle, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def running(talker: Model) -> Iterator[Running]:
    with serving(talker) as server:
        yield server


@pytest.fixture(scope="module")
def client(running: Running) -> OpenAI:
    return running.client()


def asked(choice: Any = "required", strategy: str = "verify", **more: Any) -> dict[str, Any]:
    return {
        "model": NAME, "messages": ASKED, "tools": OFFERED, "tool_choice": choice, "temperature": 1, "max_tokens": 4000,
        "extra_body": {"strategy": strategy, **NO_THOUGHT}, **more,
    }  # fmt: skip


def streamed(client: OpenAI, **fields: Any) -> dict[str, Any]:
    """Put a stream together as clients do, and look at each chunk on the way."""
    text, calls, reasons = "", [], []
    for number, chunk in enumerate(client.chat.completions.create(**fields, stream=True)):
        (choice,) = chunk.choices
        assert (choice.delta.role == "assistant") is (number == 0)
        text += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            assert part.function
            if part.index == len(calls):
                assert part.id
                assert part.type == "function"
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            else:
                assert (part.id, part.type, part.function.name) == (None, None, None)
            assert part.index == len(calls) - 1
            calls[-1]["arguments"] += part.function.arguments or ""
        reasons.append(choice.finish_reason)
    assert set(reasons[:-1]) == {None}
    return {"text": text or None, "calls": calls, "reason": reasons[-1]}


def plain(calls: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in calls or ()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_calls_that_are_required_come_whole_and_streamed(client: OpenAI, strategy: str) -> None:
    for seed in range(3):
        fields = asked(strategy=strategy, seed=seed)
        (choice,) = client.chat.completions.create(**fields).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls
        for name, arguments in plain(choice.message.tool_calls):
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
        stream = streamed(client, **fields)
        assert (stream["text"], stream["reason"]) == (None, "tool_calls")
        assert [(call["name"], call["arguments"]) for call in stream["calls"]] == plain(choice.message.tool_calls)


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_what_need_not_be_a_call_is_text_or_one(client: OpenAI, choice: str | None) -> None:
    for seed in range(3):
        fields = asked(choice, seed=seed, max_tokens=30)
        (whole,) = client.chat.completions.create(**fields).choices
        stream = streamed(client, **fields)
        assert stream["text"] == whole.message.content
        assert stream["reason"] == whole.finish_reason
        assert [(call["name"], call["arguments"]) for call in stream["calls"]] == plain(whole.message.tool_calls)
        assert choice != "none" or whole.message.tool_calls is None
        assert whole.message.content or whole.message.tool_calls or whole.finish_reason == "length"


def test_a_named_tool_is_called_once(client: OpenAI) -> None:
    for parallel in (True, False):
        answer = client.chat.completions.create(**asked(TIME, parallel_tool_calls=parallel))
        ((name, arguments),) = plain(answer.choices[0].message.tool_calls)
        assert (name, json.loads(arguments)) == ("get_time", {})
        assert answer.choices[0].finish_reason == "tool_calls"


def test_one_call_at_most_where_they_may_not_be_parallel(client: OpenAI) -> None:
    for seed in range(4):
        answer = client.chat.completions.create(**asked(parallel_tool_calls=False, seed=seed))
        assert len(answer.choices[0].message.tool_calls or ()) == 1


def test_only_allowed_tools_are_called(client: OpenAI) -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TIME]}}
    for seed in range(3):
        answer = client.chat.completions.create(**asked(allowed, seed=seed))
        assert {name for name, _ in plain(answer.choices[0].message.tool_calls)} == {"get_time"}


def test_a_call_that_is_cut_short_says_so_and_is_no_text(client: OpenAI) -> None:
    """Its arguments are there as far as they came, as in OpenAI's API; a name that is cut short does not show."""
    weather: Any = {"type": "function", "function": {"name": "get_weather"}}
    (call,) = plain(client.chat.completions.create(**asked(weather, seed=1)).choices[0].message.tool_calls)
    cut = set()
    for limit in range(1, 80, 3):
        fields = asked(weather, seed=1, max_tokens=limit)
        (choice,) = client.chat.completions.create(**fields).choices
        if choice.finish_reason == "tool_calls":
            break
        assert choice.finish_reason == "length"
        assert not choice.message.content
        calls = plain(choice.message.tool_calls)
        for name, arguments in calls:
            assert name == call[0]
            assert call[1].startswith(arguments.rstrip("\ufffd"))  # half a character, where the cut is
        stream = streamed(client, **fields)
        assert [(one["name"], one["arguments"]) for one in stream["calls"]] == calls
        assert (stream["text"], stream["reason"]) == (None, "length")
        cut.add(len(calls))
    assert cut == {0, 1}


def test_a_chat_goes_on_after_a_call(client: OpenAI) -> None:
    first = client.chat.completions.create(**asked(parallel_tool_calls=False, seed=2)).choices[0].message
    assert first.tool_calls
    turns = [*ASKED, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "21"}]
    for messages in (turns, [*turns[:1], first.model_dump(), turns[2]]):
        second = client.chat.completions.create(**{**asked("none", max_tokens=20), "messages": messages})
        assert second.choices[0].message.content
        assert second.usage
    without: Any = {"model": NAME, "messages": turns, "max_tokens": 20, "extra_body": NO_THOUGHT}
    usage = client.chat.completions.create(**without).usage  # a random model may write tokens that have no text
    assert usage
    assert usage.prompt_tokens == second.usage.prompt_tokens


def test_the_prompt_is_the_template_with_tools(client: OpenAI, talker: Model, running: Running) -> None:
    engine = running.uvicorn.service.engine
    with_tools = client.chat.completions.create(**asked("auto", max_tokens=1)).usage
    without = client.chat.completions.create(**asked("none", max_tokens=1)).usage
    assert with_tools
    assert without
    assert with_tools.prompt_tokens > without.prompt_tokens + 30
    text = engine.template.render(ASKED, enable_thinking=False)
    assert without.prompt_tokens == len(talker.tokenizer.encode(text, add_special_tokens=False).ids)


def test_what_the_grammar_spells_out_takes_no_runs_of_its_own(client: OpenAI) -> None:
    usage = client.chat.completions.create(**asked(TIME, strategy="verify")).usage
    assert usage
    assert usage.model_extra
    assert usage.model_extra["recycle"]["full_runs"] < 0.5 * usage.completion_tokens


def test_a_stream_with_tools_marks_every_token(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(**asked(seed=3), stream=True, stream_options={"include_usage": True}))
    marks = [mark for chunk in chunks if chunk.model_extra and (mark := chunk.model_extra["recycle"])]
    assert chunks[-1].usage
    assert len(marks) == chunks[-1].usage.completion_tokens
    assert all(after["proposed"] >= before["proposed"] for before, after in pairwise(marks))


def test_log_probabilities_are_those_of_all_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(**asked(TIME), logprobs=True, top_logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert answer.usage
    assert logprobs
    assert len(logprobs.content or ()) == answer.usage.completion_tokens


def test_a_format_of_the_answer_beside_tools(client: OpenAI, running: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for choice in ("none", "required"):
        (answer,) = client.chat.completions.create(**asked(choice, response_format=form)).choices
        assert bool(answer.message.tool_calls) is (choice == "required")
        assert choice == "required" or json.loads(answer.message.content or "").keys() == {"a"}
    if running.uvicorn.service.engine.tool_chat.form.beginning:
        return  # refused: see the refusals
    for seed in range(3):
        (answer,) = client.chat.completions.create(**asked("auto", response_format=form, seed=seed)).choices
        text, calls = answer.message.content, plain(answer.message.tool_calls)
        assert (json.loads(text).keys() == {"a"}) if text else calls


def test_a_strict_tool_that_tags_cannot_follow_is_refused(client: OpenAI, running: Running) -> None:
    if running.uvicorn.service.engine.tool_chat.form.tags is None:
        return  # JSON follows these keywords
    either: Any = {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}]}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": either, "strict": True}}
    with pytest.raises(BadRequestError, match=r"the parameters of tool 'f' have 'anyOf'") as refusal:
        client.chat.completions.create(**{**asked("auto"), "tools": [tool]})
    assert refusal.value.param == "tools"


def test_the_client_puts_a_stream_together_by_itself(client: OpenAI) -> None:
    fields = asked(seed=4)
    with client.chat.completions.stream(**fields) as stream:
        answer = stream.get_final_completion()
    whole = client.chat.completions.create(**fields)
    assert plain(answer.choices[0].message.tool_calls) == plain(whole.choices[0].message.tool_calls)
    assert answer.choices[0].finish_reason == "tool_calls"

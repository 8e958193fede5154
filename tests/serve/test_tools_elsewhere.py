"""Tools through the APIs that are not chat completions: calls in blocks, items and lines, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import jsonschema
import pytest
from openai import OpenAI

import recycle_onnx
from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE
from tests.helpers.tools import MARKERS, TOOL_TEMPLATES, TOOLS
from tests.serve.conftest import NAME, Running, serving
from tests.serve.test_refusals import post

pytest.importorskip("llguidance")

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SCHEMAS = {tool.name: dict(tool.parameters) for tool in TOOLS}
FLAT: Any = [{"type": "function", **tool.as_json()["function"]} for tool in TOOLS]
CLIENT = [{"name": tool.name, "description": tool.description, "input_schema": SCHEMAS[tool.name]} for tool in TOOLS]
FIRST = TOOLS[0].name
SETTINGS: Any = {"temperature": 1, "seed": 4}
NO_THOUGHT: Any = {"chat_template_kwargs": {"enable_thinking": False}}
SILENT: Any = {"thinking": {"type": "disabled"}}
USER: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module", params=["generic", next(iter(TOOL_TEMPLATES))])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A random model with a chat template that knows tools, or with one that does not."""
    folder = tmp_path_factory.mktemp("talker")
    tiny.write_base(folder / "model", tiny.tiny_config(vocab_size=302, context_length=8192), seed=7)
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens(list(MARKERS))
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    config = read_json(folder / "model" / "tokenizer_config.json")
    template = TOOL_TEMPLATES.get(request.param, PLAIN)
    write_json(folder / "model" / "tokenizer_config.json", {**config, "chat_template": template})
    attach(folder / "model", folder / "model")
    export(folder / "model", folder / "bundle")
    with recycle_onnx.load(folder / "bundle", threads=1) as model, serving(model) as server:
        yield server


def assert_call(name: str, arguments: dict[str, Any]) -> None:
    jsonschema.validate(arguments, SCHEMAS[name])


def events(running: Running, path: str, **fields: Any) -> list[dict[str, Any]]:
    request = Request(
        running.url + path, json.dumps({**fields, "stream": True}).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=PATIENCE) as response:
        texts = response.read().decode().split("\n")
    return [json.loads(text.removeprefix("data: ")) for text in texts if text.startswith(("data: ", "{"))]


def ask(running: Running, path: str, **fields: Any) -> dict[str, Any]:
    status, answer = post(running, path, json.dumps(fields).encode())
    assert status == 200, answer
    return answer


def test_a_response_has_calls(running: Running) -> None:
    asked: Any = {"input": "the cat", "tools": FLAT, "tool_choice": "required", **SETTINGS, **NO_THOUGHT}
    whole = ask(running, "/v1/responses", **asked)
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert calls
    for call in calls:
        assert_call(call["name"], json.loads(call["arguments"]))
    made = events(running, "/v1/responses", **asked)
    assert [event["sequence_number"] for event in made] == list(range(len(made)))
    last = made[-1]["response"]
    assert [(item["name"], item["arguments"]) for item in last["output"]] == [
        (call["name"], call["arguments"]) for call in calls
    ]
    for index, item in enumerate(last["output"]):
        own = [event for event in made if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["arguments"] == ""
        pieces = [event["delta"] for event in own if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(pieces) == item["arguments"]
        assert own[-1]["item"] == item
    assert last["tools"][0]["name"] == FIRST


def test_the_openai_client_sends_items_back(running: Running) -> None:
    client: OpenAI = running.client()
    choice: Any = {"type": "function", "name": FIRST}
    first = client.responses.create(
        model=NAME, input=USER, tools=FLAT, tool_choice=choice, temperature=1, extra_body={"seed": 4, **NO_THOUGHT}
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == FIRST
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    again = client.responses.create(
        model=NAME, input=[*USER, *first.output, result], tools=FLAT, tool_choice="none", max_output_tokens=5
    )
    assert again.output[0].type == "message"


def test_a_message_has_calls_in_blocks(running: Running) -> None:
    asked: Any = {
        "messages": USER,
        "max_tokens": 4000,
        "tools": CLIENT,
        "tool_choice": {"type": "any"},
        **SETTINGS,
        **SILENT,
    }
    whole = ask(running, "/v1/messages", **asked)
    assert whole["stop_reason"] == "tool_use"
    for block in whole["content"]:
        assert block["type"] == "tool_use"
        assert_call(block["name"], block["input"])
    made = events(running, "/v1/messages", **asked)
    for index, block in enumerate(whole["content"]):
        own = [event for event in made if event.get("index") == index]
        assert own[0]["content_block"] == {**block, "id": own[0]["content_block"]["id"], "input": {}}
        pieces = [event["delta"]["partial_json"] for event in own if event["type"] == "content_block_delta"]
        assert json.loads("".join(pieces)) == block["input"]
    assert made[-2]["delta"]["stop_reason"] == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "sunny"} for block in whole["content"]]
    turns = [*USER, {"role": "assistant", "content": whole["content"]}, {"role": "user", "content": results}]
    assert ask(running, "/v1/messages", messages=turns, max_tokens=5, tools=CLIENT)["content"]
    assert ask(running, "/v1/messages/count_tokens", messages=turns, tools=CLIENT)["input_tokens"] > 10


def test_the_one_tool_that_was_named_is_called_once(running: Running) -> None:
    answer = ask(
        running, "/v1/messages", messages=USER, max_tokens=4000, tools=CLIENT,
        tool_choice={"type": "tool", "name": FIRST}, **SETTINGS, **SILENT,
    )  # fmt: skip
    assert [block["name"] for block in answer["content"]] == [FIRST]


def test_ollama_has_whole_calls_and_never_as_text(running: Running) -> None:
    """There the model may choose: what looks like a call is one."""
    tools = [tool.as_json() for tool in TOOLS]
    for seed in range(6):
        options = {"temperature": 1.0, "seed": seed, "num_predict": 300}
        whole = ask(running, "/api/chat", messages=USER, tools=tools, options=options, stream=False)["message"]
        lines = events(running, "/api/chat", messages=USER, tools=tools, options=options)
        assert "".join(line["message"]["content"] for line in lines) == whole["content"]
        calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
        assert calls == whole.get("tool_calls", [])
        for call in calls:
            assert_call(call["function"]["name"], call["function"]["arguments"])


def test_ollamas_results_go_back(running: Running) -> None:
    call = {"function": {"name": FIRST, "arguments": {}}}
    turns = [*USER, {"role": "assistant", "content": "", "tool_calls": [call, call]}]
    turns += [{"role": "tool", "content": "sunny", "tool_name": FIRST}, {"role": "tool", "content": "rain"}]
    assert ask(running, "/api/chat", messages=turns, options={"num_predict": 3}, stream=False)["eval_count"] == 3


@pytest.mark.parametrize(
    ("path", "count"),
    [("/v1/messages/count_tokens", "input_tokens"), ("/v1/messages", "usage"), ("/api/chat", "prompt_eval_count")],
)
def test_variables_reach_the_template_in_every_api(path: str, count: str, running: Running) -> None:
    """The one without thoughts has a longer prompt: the template ends an empty thought."""
    asked: Any = {"messages": USER, "stream": False}
    asked |= {"/api/chat": {"options": {"num_predict": 1}}, "/v1/messages": {"max_tokens": 1}}.get(path, {})
    if "count_tokens" in path:
        del asked["stream"]
    plain, silent = (ask(running, path, **asked, **more)[count] for more in ({}, NO_THOUGHT))
    if count == "usage":
        plain, silent = (one["input_tokens"] + one["cache_read_input_tokens"] for one in (plain, silent))
    assert (silent > plain) is ("enable_thinking" in running.uvicorn.service.engine.template.text)
    status, answer = post(running, path, json.dumps({**asked, "chat_template_kwargs": {"tools": []}}).encode())
    assert status == 400
    assert "chat_template_kwargs.tools is set by the field tools" in str(answer["error"])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "two tools of one name": ("/v1/responses", {"input": "a", "tools": FLAT[:1] * 2}, "two tools are called"),
    "a call of nothing": ("/v1/responses", {"input": "a", "tool_choice": "required"}, "there are no tools"),
    "a tool that is none": (
        "/v1/responses", {"input": "a", "tools": FLAT, "tool_choice": {"type": "function", "name": "f"}}, "names 'f'",
    ),
    "a search": ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0]"),
    "a result of no call": (
        "/v1/responses",
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "a"}]}, "input[0].call_id is 'c'",
    ),
    "arguments that are none": (
        "/v1/responses",
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}, "input[0].arguments",
    ),
    "a block of a search": (
        "/v1/messages", {"messages": USER, "max_tokens": 5, "tools": [{"type": "web_search_20250305", "name": "s"}]},
        "tools[0]",
    ),
    "no schema": ("/v1/messages", {"messages": USER, "max_tokens": 5, "tools": [{"name": "f"}]}, "input_schema"),
    "arguments that are no object": (
        "/v1/messages",
        {"messages": USER, "max_tokens": 5, "tools": [{"name": "f", "input_schema": {"type": "array"}}]},
        "tools[0].input_schema describes no object",
    ),
    "a choice without a name": (
        "/v1/messages", {"messages": USER, "max_tokens": 5, "tools": CLIENT, "tool_choice": {"type": "tool"}},
        "tool_choice.name",
    ),
    "a result of the assistant's": (
        "/v1/messages",
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "c"}]}, *USER],
         "max_tokens": 5},
        "is for the role user",
    ),
    "a result of another call": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]}], "max_tokens": 5},
        "messages[0].content[0].tool_use_id is 'c'",
    ),
    "calls of the user's": (
        "/api/chat",
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}]},
        "messages[0].tool_calls is for the role assistant",
    ),
    "an answer to nothing": ("/api/chat", {"messages": [{"role": "tool", "content": "a"}]}, "answers no call"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, server: Running) -> None:
    path, fields, words = REFUSED[name]
    status, answer = post(server, path, json.dumps(fields).encode())
    assert status == 400, answer
    error = answer["error"]
    assert words in (error if isinstance(error, str) else error["message"])

"""Tools, choices, calls and results that make no sense are refused with an error that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from recycle_onnx.runtime.model import Model
from tests.serve.conftest import SHORT, Running, limits_of, serving
from tests.serve.test_refusals import CHAT, USER, assert_typed, post

pytest.importorskip("llguidance")

TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "g"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def offering(*tools: object, **fields: object) -> dict[str, Any]:
    return {"messages": USER, "tools": list(tools), **fields}


def described(**function: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def calling(**changes: object) -> dict[str, Any]:
    return {"messages": [*USER, {**CALLED, "tool_calls": [{**CALL, **changes}]}]}


OF_TOOLS: dict[str, tuple[dict[str, Any], str, str]] = {
    "tools that are no list": ({"messages": USER, "tools": "f"}, "invalid_value", "tools"),
    "a tool that is none": (offering(3), "invalid_value", "tools[0]"),
    "another kind of tool": (offering({"type": "custom", "custom": {"name": "f"}}), "invalid_value", "tools[0].type"),
    "a tool without a function": (offering({"type": "function"}), "missing_parameter", "tools[0].function"),
    "a tool without a name": (
        offering({"type": "function", "function": {"description": "d"}}),
        "missing_parameter",
        "tools[0].function.name",
    ),
    "a tool's name with a space": (offering(described(name="a b")), "invalid_value", "tools[0].function.name"),
    "two tools of one name": (offering(TOOL, TOOL), "invalid_value", "tools[0].function.name"),
    "a tool's field that is not known": (
        offering(described(cost=3)),
        "unsupported_parameter",
        "tools[0].function.cost",
    ),
    "a description that is no text": (
        offering(described(description=3)),
        "invalid_value",
        "tools[0].function.description",
    ),
    "parameters that are no schema": (
        offering(described(parameters=[1])),
        "invalid_value",
        "tools[0].function.parameters",
    ),
    "parameters of no object": (
        offering(TOOL, described(name="g", parameters={"type": "array"})),
        "invalid_value",
        "tools[1].function.parameters",
    ),
    "parameters that nobody can follow": (
        offering(described(parameters={"properties": {"a": {"type": "person"}}})),
        "invalid_value",
        "tools",
    ),
    "a strict schema that cannot be enforced": (
        offering(described(parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}}, strict=True)),
        "invalid_value",
        "tools",
    ),
    "more tools than there may be": (
        offering(*({"type": "function", "function": {"name": f"f{n}"}} for n in range(129))),
        "invalid_value",
        "tools",
    ),
    "parameters that are too long": (
        offering(described(parameters={"properties": {"a": {"const": "x" * 120_000}}})),
        "invalid_value",
        "tools",
    ),
    "an unknown choice": (offering(TOOL, tool_choice="always"), "invalid_value", "tool_choice"),
    "the choice of another tool": (offering(TOOL, tool_choice=NAMED), "invalid_value", "tool_choice"),
    "a choice of no function": (
        offering(TOOL, tool_choice={"type": "function"}),
        "missing_parameter",
        "tool_choice.function",
    ),
    "a choice among other tools": (
        offering(TOOL, tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}),
        "invalid_value",
        "tool_choice",
    ),
    "a call of nothing": ({"messages": USER, "tool_choice": "required"}, "invalid_value", "tool_choice"),
    "a call of nothing by name": ({"messages": USER, "tool_choice": NAMED}, "invalid_value", "tool_choice"),
    "a number for yes": (offering(TOOL, parallel_tool_calls=1), "invalid_value", "parallel_tool_calls"),
    "tools and a format of the answer": (
        offering(TOOL, response_format={"type": "json_object"}),
        "unsupported_value",
        "response_format",
    ),
    "variables that are no object": (
        {"messages": USER, "chat_template_kwargs": [1]},
        "invalid_value",
        "chat_template_kwargs",
    ),
    "a variable that has a field of its own": (
        {"messages": USER, "chat_template_kwargs": {"tools": []}},
        "invalid_value",
        "chat_template_kwargs.tools",
    ),
    "a user who calls": (
        {"messages": [{**USER[0], "tool_calls": [CALL]}]},
        "invalid_value",
        "messages[0].tool_calls",
    ),
    "a call that is none": (
        {"messages": [*USER, {**CALLED, "tool_calls": [3]}]},
        "invalid_value",
        "messages[1].tool_calls[0]",
    ),
    "calls that are no list": (
        {"messages": [*USER, {**CALLED, "tool_calls": "f"}]},
        "invalid_value",
        "messages[1].tool_calls",
    ),
    "a call without an id": (calling(id=None), "invalid_value", "messages[1].tool_calls[0].id"),
    "a call of no function": (calling(function=None), "invalid_value", "messages[1].tool_calls[0].function"),
    "a call of another kind": (calling(type="custom"), "invalid_value", "messages[1].tool_calls[0].type"),
    "arguments that are an object": (
        calling(function={"name": "f", "arguments": {"a": 1}}),
        "invalid_value",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments that are no JSON": (
        calling(function={"name": "f", "arguments": "{"}),
        "invalid_value",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments that are no object": (
        calling(function={"name": "f", "arguments": "[]"}),
        "invalid_value",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "an assistant who says nothing": (
        {"messages": [*USER, {"role": "assistant", "content": None}]},
        "invalid_value",
        "messages[1].content",
    ),
    "an assistant without content": (
        {"messages": [*USER, {"role": "assistant"}]},
        "missing_parameter",
        "messages[1].content",
    ),
    "a result of no call": (
        {"messages": [*USER, CALLED, {"role": "tool", "content": "x"}]},
        "missing_parameter",
        "messages[2].tool_call_id",
    ),
    "a result of another call": (
        {"messages": [*USER, CALLED, {"role": "tool", "content": "x", "tool_call_id": "b"}]},
        "invalid_value",
        "messages[2].tool_call_id",
    ),
    "a result that is none": (
        {"messages": [*USER, CALLED, {"role": "tool", "tool_call_id": "a"}]},
        "missing_parameter",
        "messages[2].content",
    ),
    "an id of a call for a user": (
        {"messages": [{**USER[0], "tool_call_id": "a"}]},
        "invalid_value",
        "messages[0].tool_call_id",
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", OF_TOOLS)
def test_what_makes_no_sense_of_tools_is_refused(name: str, stream: bool, server: Running) -> None:
    fields, code, param = OF_TOOLS[name]
    status, answer = post(server, CHAT, json.dumps({**fields, "stream": stream}).encode())
    assert status == 400, answer
    assert_typed(answer, code)
    assert answer["error"]["param"] == param, answer
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_tool_that_cannot_be_followed_is_named(server: Running) -> None:
    person = {"properties": {"a": {"type": "person"}}}
    for more in ({}, {"anyOf": [{}]}):  # tried in this process, and in one of its own
        tools = [TOOL, described(name="g", parameters={**person, **more})]
        _, answer = post(server, CHAT, json.dumps(offering(*tools)).encode())
        assert "the parameters of tool 'g': the JSON schema is not one to follow" in answer["error"]["message"]


def test_schemas_that_take_too_long_are_refused(endless_model: Model) -> None:
    hard = {"allOf": [{"properties": {"a": {"type": "string", "pattern": f"(a|b)*{n}.{{20}}c"}}} for n in range(30)]}
    with serving(endless_model, limits_of(schema_seconds=SHORT)) as running:
        status, answer = post(running, CHAT, json.dumps(offering(described(parameters=hard))).encode())
    assert status == 400, answer
    assert answer["error"]["param"] == "tools"
    assert "takes more than 0.2 s to compile" in answer["error"]["message"]


def test_without_llguidance_one_line_says_what_to_install(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recycle_onnx.serve.engine.is_installed", lambda extra: extra != "structured")
    status, answer = post(server, CHAT, json.dumps(offering(TOOL, max_tokens=1)).encode())
    assert status == 400
    assert_typed(answer, "unsupported_value")
    assert answer["error"]["param"] == "tools"
    assert "pip install 'recycle-onnx[structured]'" in answer["error"]["message"]
    assert post(server, CHAT, json.dumps({"messages": USER, "max_tokens": 1}).encode())[0] == 200


def test_calls_may_have_no_arguments_and_no_type(server: Running) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": ""}}
    turns = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]},
             {"role": "tool", "content": "", "tool_call_id": "a"}]  # fmt: skip
    assert post(server, CHAT, json.dumps({"messages": turns, "max_tokens": 2}).encode())[0] == 200


def test_variables_reach_the_template(server: Running) -> None:
    counts = []
    for variables in ({}, {"bos_token": "the cat sat on the mat "}):
        body = json.dumps({"messages": USER, "max_tokens": 1, "chat_template_kwargs": variables})
        status, answer = post(server, CHAT, body.encode())
        assert status == 200
        counts.append(answer["usage"]["prompt_tokens"])
    assert counts[1] > counts[0]

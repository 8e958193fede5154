"""What makes no sense is refused with a typed error that names it, and the server goes on."""

from __future__ import annotations

import http.client
import json
from typing import Any
from unittest.mock import Mock

import openai
import pytest
from openai import OpenAI

from recycle_onnx.runtime.model import Model
from recycle_onnx.serve import mistakes, schema
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.schema import AnyRequest, ChatRequest, CompletionRequest
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import NAME, Running, serving, wait_until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "the cat"}]
REFUSED: dict[str, tuple[str, dict[str, Any], int, str, str | None]] = {
    "no prompt": (TEXT, {}, 400, "missing_parameter", "prompt"),
    "an empty prompt": (TEXT, {"prompt": ""}, 400, "invalid_value", "prompt"),
    "no ids": (TEXT, {"prompt": []}, 400, "invalid_value", "prompt"),
    "ids beyond the vocabulary": (TEXT, {"prompt": [1, 999_999]}, 400, "invalid_value", "prompt"),
    "ids beyond the vocabulary in one": (TEXT, {"prompt": [[999_999], [1]]}, 400, "invalid_value", "prompt[0]"),
    "too many prompts": (TEXT, {"prompt": ["a"] * 65}, 400, "invalid_value", "prompt"),
    "an empty prompt among several": (TEXT, {"prompt": ["a", ""]}, 400, "invalid_value", "prompt[1]"),
    "too many answers to each": (TEXT, {"prompt": ["a"] * 33, "n": 2}, 400, "invalid_value", "n"),
    "a gap to fill": (TEXT, {"prompt": "a", "suffix": "b"}, 400, "unsupported_parameter", "suffix"),
    "no messages": (CHAT, {"messages": []}, 400, "invalid_value", "messages"),
    "another role": (CHAT, {"messages": [{"role": "cat", "content": ""}]}, 400, "invalid_value", "messages[0].role"),
    "an image": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "invalid_value",
        "messages[0].content[0].type",
    ),
    "no answer": (CHAT, {"messages": USER, "n": 0}, 400, "invalid_value", "n"),
    "too many answers": (CHAT, {"messages": USER, "n": 65}, 400, "invalid_value", "n"),
    "an echo": (TEXT, {"prompt": "a", "echo": True}, 400, "invalid_value", "echo"),
    "the best of several": (TEXT, {"prompt": "a", "best_of": 2}, 400, "unsupported_value", "best_of"),
    "a typo": (TEXT, {"prompt": "a", "max_token": 3}, 400, "unsupported_parameter", "max_token"),
    "no new tokens": (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    "a text as a number": (TEXT, {"prompt": "a", "temperature": "1"}, 400, "invalid_value", "temperature"),
    "too hot": (TEXT, {"prompt": "a", "temperature": 2.5}, 400, "invalid_value", "temperature"),
    "less than no nucleus": (TEXT, {"prompt": "a", "top_p": -0.1}, 400, "invalid_value", "top_p"),
    "a penalty out of range": (TEXT, {"prompt": "a", "presence_penalty": -3}, 400, "invalid_value", "presence_penalty"),
    "a bias of a word": (TEXT, {"prompt": "a", "logit_bias": {"cat": 1}}, 400, "invalid_value", "logit_bias.cat"),
    "a bias beyond the vocabulary": (
        TEXT, {"prompt": "a", "logit_bias": {"999999": 1}}, 400, "invalid_value", "logit_bias",
    ),
    "an empty stop": (TEXT, {"prompt": "a", "stop": [""]}, 400, "invalid_value", "stop[0]"),
    "an unknown strategy": (TEXT, {"prompt": "a", "strategy": "guess"}, 400, "invalid_value", "strategy"),
    "a chain for full": (TEXT, {"prompt": "a", "strategy": "full", "chain": 2}, 400, "invalid_value", "chain"),
    "a confidence for full": (
        TEXT, {"prompt": "a", "strategy": "full", "min_confidence": 0.5}, 400, "invalid_value", "min_confidence",
    ),
    "too many alternatives": (
        CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs",
    ),
    "alternatives of nothing": (
        CHAT, {"messages": USER, "top_logprobs": 2}, 400, "invalid_value", "top_logprobs",
    ),
    "a schema that is none": (
        CHAT,
        {"messages": USER, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 3}}},
        400, "invalid_value", "response_format.json_schema.schema",
    ),
    "an unknown format": (
        CHAT, {"messages": USER, "response_format": {"type": "xml"}}, 400, "invalid_value", "response_format",
    ),
    "usage without a stream": (
        CHAT, {"messages": USER, "stream_options": {"include_usage": True}}, 400, "invalid_value", "stream_options",
    ),
    "a prompt longer than the context": (TEXT, {"prompt": "cat " * 40_000}, 400, "context_length_exceeded", "prompt"),
    "messages longer than the context": (
        CHAT, {"messages": [{"role": "user", "content": "cat " * 40_000}]}, 400, "context_length_exceeded", "messages",
    ),
}  # fmt: skip
BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "invalid_json"),
    "half an object": (b'{"prompt": "a"', "invalid_json"),
    "a list": (b"[]", "invalid_value"),
    "Latin-1": ('{"prompt": "né"}'.encode("latin-1"), "invalid_json"),
    "half a surrogate": (rb'{"prompt": "\ud800"}', "invalid_json"),
    "no number": (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
    "a number beyond all": (b'{"prompt": "a", "temperature": 1e999}', "invalid_value"),
    "a deep nest": (b'{"prompt":' + b"[" * 100_000, "invalid_json"),
    "zeros": (bytes(1000), "invalid_json"),
}


def post(running: Running, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def assert_typed(answer: dict[str, Any], code: str) -> None:
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == code, answer
    assert answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_makes_no_sense_is_refused(name: str, stream: bool, server: Running) -> None:
    path, fields, expected, code, param = REFUSED[name]
    if stream and name == "usage without a stream":
        pytest.skip("with a stream it makes sense")
    status, answer = post(server, path, json.dumps({**fields, "stream": stream}).encode())
    assert status == expected, answer
    assert_typed(answer, code)
    assert answer["error"]["param"] == param, answer
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused(name: str, path: str, server: Running) -> None:
    body, code = BODIES[name]
    status, answer = post(server, path, body)
    assert status == 400
    assert_typed(answer, code)


def test_a_body_of_half_a_million_texts_is_not_made_into_objects(server: Running) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "a"}], "metadata": {str(n): "" for n in range(200_000)}}
    )
    status, answer = post(server, CHAT, body.encode())
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    quotes = json.dumps({"prompt": '"' * 200_000}).encode()
    assert post(server, TEXT, quotes)[1]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (ChatRequest, {"messages": [{}] * 100_000}, "messages[0].role is missing"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 100_000}]}, "messages[0].content[0].type"),
        (ChatRequest, {"messages": USER, "tools": [{}] * 100_000}, "tools[0].type"),
        (CompletionRequest, {"prompt": [-1] * 100_000}, "prompt[0] is -1"),
        (CompletionRequest, {"prompt": "a", "stop": [""] * 100_000}, "stop is ["),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(n): 1000 for n in range(100_000)}}, "100000 mistakes"),
        (CompletionRequest, {"prompt": "a", **{f"field{n}": 1 for n in range(100_000)}}, "100000 mistakes"),
    ],
    ids=["messages", "parts", "tools", "ids", "stops", "biases", "fields"],
)
def test_not_all_of_a_million_mistakes_are_looked_at(
    kind: type[AnyRequest], fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop would wait for so long, and a body of megabytes would need gigabytes."""
    monkeypatch.setattr(mistakes, "_path", counted := Mock(wraps=mistakes._path))
    with pytest.raises(ApiError) as found:
        schema.parse(json.dumps(fields).encode(), kind)
    assert found.value.status == 400
    assert words in str(found.value)
    assert counted.call_count <= 10


def test_too_many_stop_strings_are_told_how_many_there_may_be(server: Running) -> None:
    _, answer = post(server, TEXT, json.dumps({"prompt": "a", "stop": list("abcdefghijklmnopq")}).encode())
    assert "expected: at most 16 items" in answer["error"]["message"]
    status, _ = post(server, TEXT, json.dumps({"prompt": "a", "stop": list("abcdefghijklmnop")}).encode())
    assert status == 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "a", "stop": 5}, "stop is 5; expected: a valid string or a valid list"),
        ({"prompt": "a", "stop": {"a": 1}}, 'stop is {"a":1}; expected: a valid string or a valid list'),
        ({"prompt": 5}, "prompt is 5; expected: a valid string or a valid list"),
        ({"prompt": "a", "logit_bias": {str(n): 1 for n in range(5000)}}, "expected: at most 4096 items"),
    ],
)
def test_all_that_may_stand_in_a_place_is_told(fields: dict[str, Any], words: str, server: Running) -> None:
    status, answer = post(server, TEXT, json.dumps(fields).encode())
    assert status == 400
    assert words in answer["error"]["message"]


@pytest.mark.parametrize("nothing", [None, "", [], {}], ids=repr)
@pytest.mark.parametrize("name", ["functions", "reasoning_effort", "prediction", "stop", "tools", "cat"])
def test_fields_that_say_nothing_are_no_mistake(name: str, nothing: object, server: Running) -> None:
    body = json.dumps({"messages": USER, name: nothing, "max_tokens": 2}).encode()
    assert post(server, CHAT, body)[0] == 200


@pytest.mark.parametrize("nothing", [None, "", [], {}], ids=repr)
@pytest.mark.parametrize("name", ["refusal", "reasoning_content", "audio", "function_call", "tool_calls", "cat"])
def test_nor_are_those_of_messages(name: str, nothing: object, server: Running) -> None:
    body = json.dumps({"messages": [{**USER[0], name: nothing}], "max_tokens": 2}).encode()
    assert post(server, CHAT, body)[0] == 200


@pytest.mark.parametrize(
    ("where", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"cat": False}, "cat"),
        ({"cat": 0}, "cat"),
        ({"messages": [{**USER[0], "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{**USER[0], "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
def test_those_that_say_something_are(where: dict[str, Any], param: str, server: Running) -> None:
    status, answer = post(server, CHAT, json.dumps({"messages": USER, **where}).encode())
    assert status == 400
    assert answer["error"]["param"] == param


def test_options_of_no_stream_that_ask_for_nothing_are_no_mistake(server: Running) -> None:
    body = json.dumps({"messages": USER, "max_tokens": 2, "stream_options": {"include_usage": False}}).encode()
    assert post(server, CHAT, body)[0] == 200


def test_a_body_must_be_declared_as_json(server: Running) -> None:
    """A page on the web can send plain text to this machine unasked, and no JSON."""
    status, answer = post(server, TEXT, b'{"prompt": "a"}', **{"Content-Type": "text/plain"})
    assert status == 415
    assert_typed(answer, "not_json")


@pytest.mark.parametrize(
    ("path", "status", "code"), [("/v2", 404, "not_found"), ("/health", 405, "method_not_allowed")]
)
def test_other_paths_and_methods_are_refused_in_the_same_shape(
    path: str, status: int, code: str, server: Running
) -> None:
    found, answer = post(server, path, b"{}")
    assert found == status
    assert_typed(answer, code)


def test_the_client_raises_what_it_raises_for_openai(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError, match="best_of must be 1"):
        client.completions.create(model=NAME, prompt="a", best_of=2)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model=NAME, prompt="cat " * 40_000)


def test_any_model_may_be_named(client: OpenAI) -> None:
    answer = client.completions.create(model="gpt-4", prompt="a", max_tokens=2)
    assert answer.model == NAME


def test_a_strict_server_knows_its_own_model_alone(endless_model: Model) -> None:
    with serving(endless_model, strict=True) as running:
        for path, fields in (
            (TEXT, {"prompt": "a"}),
            (CHAT, {"messages": USER, "max_tokens": 2}),
            ("/v1/embeddings", {"input": "a"}),
        ):
            status, answer = post(running, path, json.dumps({**fields, "model": "gpt-4"}).encode())
            assert status == 404
            assert_typed(answer, "model_not_found")
            assert answer["error"]["param"] == "model"
            assert post(running, path, json.dumps({**fields, "model": NAME}).encode())[0] == 200
            assert post(running, path, json.dumps(fields).encode())[0] == 200


def test_a_body_that_is_too_large_is_refused(server: Running) -> None:
    status, answer = post(server, TEXT, json.dumps({"prompt": "cat " * 2_500_000}).encode())
    assert status == 413
    assert_typed(answer, "request_too_large")
    with pytest.raises(openai.APIStatusError, match="larger than"):
        server.client().completions.create(model=NAME, prompt="x" * 10_000_000)


def test_ten_megabytes_of_prompt_are_read_and_refused(endless_model: Model) -> None:
    """Where the limit lets them in, they are more than the context; meanwhile the server answers others."""
    with serving(endless_model, Limits(body_bytes=16 << 20)) as running:
        status, answer = post(running, TEXT, json.dumps({"prompt": "the cat sat " * 900_000}).encode())
        assert status == 400
        assert_typed(answer, "context_length_exceeded")
        wait_until(lambda: running.busy == 0)
        assert running.client().completions.create(model=NAME, prompt="the").choices[0].text


def test_the_server_goes_on_after_all_that(client: OpenAI, server: Running) -> None:
    assert client.completions.create(model=NAME, prompt="the cat").choices[0].text
    wait_until(lambda: server.busy == server.waiting == 0)

"""Anthropic's messages: blocks, events, counts, and what is refused."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

import pytest

from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import NAME, Running, serving, wait_until
from tests.serve.test_refusals import post

PATH = "/v1/messages"
USER = [{"role": "user", "content": "the dog ran"}]
RENDERED = "<|endoftext|>system: be a cat\nuser: the dog ran\nassistant:"
ASKED: dict[str, Any] = {"model": "any", "max_tokens": 20, "system": "be a cat", "messages": USER}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no limit": ({"messages": USER}, "max_tokens is missing"),
    "no messages": ({"max_tokens": 5}, "messages is missing"),
    "a system turn": (
        {"max_tokens": 5, "messages": [{"role": "system", "content": "a"}]}, "messages[0].role is 'system'",
    ),
    "an image": (
        {"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "image", "source": {"a": 1}}]}]},
        "messages[0].content[0]",
    ),
    "an answer that is begun": (
        {"max_tokens": 5, "messages": [*USER, {"role": "assistant", "content": "The"}]}, "messages[1].role",
    ),
    "thinking": (
        {"max_tokens": 5, "messages": USER, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking",
    ),
    "no tokens": ({"max_tokens": 0, "messages": USER}, "max_tokens is 0"),
    "an empty stop": ({"max_tokens": 5, "messages": USER, "stop_sequences": [""]}, "stop_sequences[0]"),
    "too hot": ({"max_tokens": 5, "messages": USER, "temperature": 2.5}, "temperature is 2.5"),
    "a container": ({"max_tokens": 5, "messages": USER, "container": "c"}, "container is not served"),
    "a prompt longer than the context": (
        {"max_tokens": 5, "messages": [{"role": "user", "content": "cat " * 40_000}]}, "the prompt has",
    ),
}  # fmt: skip


def ask(server: Running, path: str = PATH, **fields: Any) -> dict[str, Any]:
    status, answer = post(server, path, json.dumps(fields).encode())
    assert status == 200, answer
    return answer


def test_minus_one_is_no_limit_but_the_context(sample_model: Model) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Once upon a time"}], "stop_sequences": ["."]}
    with serving(sample_model) as running:
        unlimited, limited = (ask(running, max_tokens=most, **asked) for most in (-1, 500))
    assert unlimited["stop_reason"] == "stop_sequence"
    assert unlimited["content"] == limited["content"]


def events(server: Running, **fields: Any) -> list[dict[str, Any]]:
    body = json.dumps({**fields, "stream": True}).encode()
    request = Request(server.url + PATH, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.read().decode().strip().split("\n\n")
    made = []
    for block in blocks:
        kind, data = block.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {made[-1]['type']}"
    return made


def expected(model: Model, **settings: Any) -> str:
    ids = model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    return model.generate(ids, max_new_tokens=20, **settings).text


def test_a_message_is_what_generate_gives(server: Running, endless_model: Model) -> None:
    answer = ask(server, **ASKED)
    assert answer["content"] == [{"type": "text", "text": expected(endless_model)}]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", NAME)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("max_tokens", None)
    usage = answer["usage"]
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(ids)
    assert usage["output_tokens"] == 20


def test_texts_may_come_in_blocks(server: Running, endless_model: Model) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "be "}, {"type": "text", "text": "a cat", **cached}]
    turns = [{"role": "user", "content": [{"type": "text", "text": "the dog ran", **cached}]}]
    answer = ask(server, **{**ASKED, "system": system, "messages": turns}, metadata={"user_id": "u"})
    assert answer["content"][0]["text"] == expected(endless_model)


def test_settings_are_passed_on(server: Running, endless_model: Model) -> None:
    answer = ask(server, **ASKED, temperature=1, top_k=40, top_p=0.9, seed=3, strategy="verify")
    assert answer["content"][0]["text"] == expected(endless_model, temperature=1.0, top_k=40, top_p=0.9, seed=3)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_stop_sequence_that_came_is_told(stream: bool, server: Running, endless_model: Model) -> None:
    text = expected(endless_model)
    asked: Any = {**ASKED, "stop_sequences": ["never there", text[6:9]]}
    if stream:
        (answer,) = [event["delta"] for event in events(server, **asked) if event["type"] == "message_delta"]
    else:
        answer = ask(server, **asked)
        assert answer["content"][0]["text"] == text[: text.find(text[6:9])]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", text[6:9])


def test_a_text_that_ends_by_itself_is_an_end_of_turn(server: Running) -> None:
    answer = ask(server, **ASKED, logit_bias={"0": 100})  # the token that ends a text
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["usage"]["output_tokens"] == 1


def test_streamed_events_add_up(server: Running, endless_model: Model) -> None:
    made = events(server, **ASKED)
    kinds = [event["type"] for event in made if event["type"] != "content_block_delta"]
    assert kinds == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    text = "".join(event["delta"]["text"] for event in made if event["type"] == "content_block_delta")
    assert text == expected(endless_model)
    start, delta = made[0]["message"], made[-2]
    assert (start["content"], start["stop_reason"], start["role"]) == ([], None, "assistant")
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    for usage in (start["usage"], delta["usage"]):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(ids)
    assert (delta["delta"]["stop_reason"], delta["usage"]["output_tokens"]) == ("max_tokens", 20)


def test_tokens_of_messages_are_counted(server: Running, endless_model: Model) -> None:
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    assert ask(server, f"{PATH}/count_tokens", **asked) == {"input_tokens": len(ids)}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, stream: bool, server: Running) -> None:
    fields, words = REFUSED[name]
    status, answer = post(server, PATH, json.dumps({**fields, "stream": stream}).encode())
    assert status == 400
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert words in answer["error"]["message"]


def test_a_key_may_come_in_either_header(endless_model: Model) -> None:
    with serving(endless_model, token="sesame", strict=True) as running:
        body = json.dumps({**ASKED, "model": NAME}).encode()
        assert post(running, PATH, body, **{"x-api-key": "sesame"})[0] == 200
        assert post(running, PATH, body, Authorization="Bearer sesame")[0] == 200
        for wrong in ({"x-api-key": "wrong"}, {}, {"x-api-key": "sesame", "Authorization": "Bearer wrong"}):
            status, answer = post(running, PATH, body, **wrong)
            assert (status, answer["error"]["type"]) == (401, "authentication_error")
        status, answer = post(running, PATH, json.dumps(ASKED).encode(), **{"x-api-key": "sesame"})
        assert (status, answer["error"]["type"]) == (404, "not_found_error")


def test_a_stream_ends_with_an_error_event_at_the_deadline(endless_model: Model) -> None:
    with serving(endless_model, Limits(generation_seconds=1)) as running:
        made = events(running, **{**ASKED, "max_tokens": 30_000})
        assert made[-1] == {
            "type": "error", "error": {"type": "timeout_error", "message": "the answer took more than 1 s"},
        }  # fmt: skip
        wait_until(lambda: running.busy == 0)

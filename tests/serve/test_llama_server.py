"""What llama.cpp's server has beside OpenAI's API."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import urlopen

import pytest

from recycle_onnx.runtime.model import Model
from tests.serve.conftest import NAME, TEMPLATE, Running
from tests.serve.test_refusals import assert_typed, post

ODD = "the cat 🦊 né <|endoftext|>"
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no content": ("/tokenize", {}, "missing_parameter", "content"),
    "a list": ("/tokenize", {"content": ["a"]}, "invalid_value", "content"),
    "too long a text": ("/tokenize", {"content": "a" * 300_000}, "invalid_value", "content"),
    "special tokens as text": (
        "/tokenize", {"content": "a", "parse_special": False}, "invalid_value", "parse_special",
    ),
    "an option of another server": ("/tokenize", {"content": "a", "pieces": True}, "unsupported_parameter", "pieces"),
    "no tokens": ("/detokenize", {}, "missing_parameter", "tokens"),
    "a negative token": ("/detokenize", {"tokens": [1, -1]}, "invalid_value", "tokens[1]"),
    "a token beyond the vocabulary": ("/detokenize", {"tokens": [1, 300]}, "invalid_value", "tokens[1]"),
    "a text for tokens": ("/detokenize", {"tokens": "a"}, "invalid_value", "tokens"),
    "no messages": ("/apply-template", {}, "missing_parameter", "messages"),
    "another role": (
        "/apply-template", {"messages": [{"role": "cat", "content": "a"}]}, "invalid_value", "messages[0].role",
    ),
}  # fmt: skip


def ask(server: Running, path: str, **fields: Any) -> dict[str, Any]:
    status, answer = post(server, path, json.dumps(fields).encode())
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("text", ["the cat sat", ODD, "", "a" * 50_000], ids=["plain", "odd", "none", "long"])
def test_a_text_and_its_tokens(text: str, special: bool, server: Running, endless_model: Model) -> None:
    ids = endless_model.tokenizer.encode(text, add_special_tokens=special).ids
    assert ask(server, "/tokenize", content=text, add_special=special) == {"tokens": ids}
    back = ask(server, "/detokenize", tokens=ids)["content"]
    assert back == ("<|endoftext|>" if special else "") + text


def test_pieces_are_the_texts_of_tokens(server: Running) -> None:
    pieces = ask(server, "/tokenize", content="the cat é", with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == ask(server, "/tokenize", content="the cat é")["tokens"]
    text = "".join(piece["piece"] for piece in pieces)
    assert text.startswith("the cat ")
    assert "\ufffd" in text  # the two bytes of é are tokens of their own here


def test_a_prompt_of_messages_is_the_templates(server: Running) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    prompt = ask(server, "/apply-template", messages=messages)["prompt"]
    assert prompt == "<|endoftext|>user: the cat\nassistant:"
    assert "assistant:" in TEMPLATE


def test_props_tell_what_is_loaded(server: Running) -> None:
    with urlopen(f"{server.url}/props") as response:
        props = json.load(response)
    assert props["default_generation_settings"]["n_ctx"] == 32768
    params = props["default_generation_settings"]["params"]
    assert (params["temperature"], params["top_k"], params["repeat_penalty"]) == (0.0, 0, 1.0)
    assert "seed" not in params  # one is drawn for each request
    assert (props["model_alias"], props["total_slots"]) == (NAME, 2)
    assert (props["bos_token"], props["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert props["build_info"].startswith("recycle-onnx ")
    assert props["recycle"]["default_strategy"] == "auto"


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, server: Running) -> None:
    path, fields, code, param = REFUSED[name]
    status, answer = post(server, path, json.dumps(fields).encode())
    assert status == 400, answer
    assert_typed(answer, code)
    assert answer["error"]["param"] == param, answer


def test_half_a_character_is_refused(server: Running) -> None:
    status, answer = post(server, "/tokenize", b'{"content": "a\\ud800"}')
    assert status == 400
    assert_typed(answer, "invalid_json")

"""Ollama's API: lines of JSON, whole answers, and what is refused."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import recycle_onnx
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.ollama import as_line
from recycle_onnx.serve.ollama_objects import OllamaAnswer
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import NAME, Running, serving, wait_until
from tests.serve.test_refusals import post

CHAT, GENERATE = "/api/chat", "/api/generate"
USER = [{"role": "system", "content": "be a cat"}, {"role": "user", "content": "the dog ran"}]
RENDERED = "<|endoftext|>system: be a cat\nuser: the dog ran\nassistant:"
SHORT = {"num_predict": 20}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another role": (CHAT, {"messages": [{"role": "cat", "content": "a"}]}, "messages[0].role"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content is missing"),
    "an image": (CHAT, {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "messages[0].images"),
    "thinking": (CHAT, {"messages": USER, "think": True}, "think: this model's chat template knows no thoughts"),
    "thinking to a degree": (CHAT, {"messages": USER, "think": "high"}, "think is 'high'; expected: a valid boolean"),
    "another format": (CHAT, {"messages": USER, "format": "xml"}, "format is 'xml'"),
    "a typo": (CHAT, {"messages": USER, "option": {}, "optiosn": {"a": 1}}, "optiosn is not served"),
    "an option of another sampler": (CHAT, {"messages": USER, "options": {"mirostat": 1}}, "options.mirostat"),
    "too hot": (CHAT, {"messages": USER, "options": {"temperature": 3.0}}, "options.temperature is 3.0"),
    "no tokens": (CHAT, {"messages": USER, "options": {"num_predict": 0}}, "options.num_predict is 0"),
    "a gap to fill": (GENERATE, {"prompt": "a", "suffix": "b"}, "suffix"),
    "an earlier context": (GENERATE, {"prompt": "a", "context": [1, 2]}, "context"),
    "a template": (GENERATE, {"prompt": "a", "template": "b"}, "template is not served"),
    "a prompt longer than the context": (GENERATE, {"prompt": "cat " * 40_000}, "the prompt has"),
    "no input": ("/api/embed", {}, "input is missing"),
    "an empty input": ("/api/embed", {"input": ["a", ""]}, "input[1]"),
    "a text to embed that is too long": (
        "/api/embed",
        {"input": "cat " * 40_000, "truncate": False},
        "the prompt has",
    ),
    "no prompt to embed": ("/api/embeddings", {}, "prompt is missing"),
    "several prompts to embed": ("/api/embeddings", {"prompt": ["a"]}, 'prompt is ["a"]'),
    "a typo in show": ("/api/show", {"model": NAME, "verbos": True}, "verbos"),
}


def ask(server: Running, path: str, **fields: Any) -> dict[str, Any]:
    status, answer = post(server, path, json.dumps({"model": "any", "stream": False, **fields}).encode())
    assert status == 200, answer
    return answer


def lines(server: Running, path: str, **fields: Any) -> list[dict[str, Any]]:
    body = json.dumps({"model": "any", **fields}).encode()
    request = Request(server.url + path, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response]


def get(server: Running, path: str) -> dict[str, Any]:
    with urlopen(server.url + path) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def expected(model: Model, text: str = RENDERED, **settings: Any) -> str:
    ids = model.tokenizer.encode(text, add_special_tokens=False).ids
    return model.generate(ids, max_new_tokens=20, **settings).text


def test_a_chat_is_what_generate_gives(server: Running, endless_model: Model) -> None:
    answer = ask(server, CHAT, messages=USER, options=SHORT)
    assert answer["message"] == {"role": "assistant", "content": expected(endless_model)}
    assert (answer["model"], answer["done"], answer["done_reason"]) == (NAME, True, "length")
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (len(ids), 20)
    assert 0 < answer["prompt_eval_duration"] + answer["eval_duration"] <= answer["total_duration"]
    assert answer["created_at"].endswith("Z")
    assert "response" not in answer


def test_a_streamed_chat_adds_up(server: Running, endless_model: Model) -> None:
    made = lines(server, CHAT, messages=USER, options=SHORT)
    assert "".join(line["message"]["content"] for line in made) == expected(endless_model)
    assert [line["done"] for line in made] == [False] * (len(made) - 1) + [True]
    assert made[-1]["done_reason"] == "length"
    assert made[-1]["eval_count"] == 20
    assert "eval_count" not in made[0]


def test_a_line_is_one_to_every_client() -> None:
    """httpx ends lines wherever Python does."""
    text = "a\u2028b\u2029c\x85d\x0be"
    line = as_line(OllamaAnswer(model="m", response=text))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["response"] == text


def test_a_prompt_goes_through_the_template_unless_it_is_raw(server: Running, endless_model: Model) -> None:
    answer = ask(server, GENERATE, prompt="the dog ran", system="be a cat", options=SHORT)
    assert answer["response"] == expected(endless_model)
    assert "message" not in answer
    raw = ask(server, GENERATE, prompt="the dog ran", raw=True, options=SHORT)
    assert raw["response"] == endless_model.generate("the dog ran", max_new_tokens=20).text
    made = lines(server, GENERATE, prompt="the dog ran", raw=True, options=SHORT)
    assert "".join(line["response"] for line in made) == raw["response"]


def test_options_are_passed_on_and_those_of_loading_are_not(server: Running, endless_model: Model) -> None:
    options = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 3, "repeat_penalty": 1.2}
    loading = {"num_ctx": 4096, "num_thread": 8, "num_gpu": 0, "use_mmap": True, "num_keep": 4}
    answer = ask(
        server, CHAT, messages=USER, options={**SHORT, **options, **loading, "strategy": "verify"}, keep_alive="5m"
    )
    settings = {name: value for name, value in options.items() if name != "repeat_penalty"}
    assert answer["message"]["content"] == expected(endless_model, repetition_penalty=1.2, **settings)


def test_stop_strings_end_the_text(server: Running, endless_model: Model) -> None:
    text = expected(endless_model)
    answer = ask(server, CHAT, messages=USER, options={"num_predict": 60, "stop": [text[6:9]]})
    assert answer["message"]["content"] == text[: text.find(text[6:9])]
    assert answer["done_reason"] == "stop"


@pytest.mark.parametrize(("path", "fields"), [(CHAT, {"messages": []}), (GENERATE, {"prompt": ""}), (GENERATE, {})])
def test_without_a_prompt_the_model_is_only_asked_for(path: str, fields: dict[str, Any], server: Running) -> None:
    answer = ask(server, path, **fields)
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert "eval_count" not in answer


def test_a_limit_of_minus_one_is_the_context(tiny_bundle: Any) -> None:
    with recycle_onnx.load(tiny_bundle, threads=1) as model, serving(model) as running:
        answer = ask(running, GENERATE, prompt="the cat", raw=True, options={"num_predict": -1, "stop": []})
        assert answer["prompt_eval_count"] + answer["eval_count"] == 64 or answer["done_reason"] == "stop"


def test_an_answer_follows_a_schema(sample_model: Model) -> None:
    described = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"]}
    with serving(sample_model) as running:
        answer = ask(running, CHAT, messages=USER, format={**described, "additionalProperties": False})
        assert json.loads(answer["message"]["content"])["legs"] in (2, 4)
        anything = ask(running, CHAT, messages=USER, format="json", options={"num_predict": 9})
        assert anything["message"]["content"].startswith("{")


def test_vectors_are_those_of_the_model(server: Running, endless_model: Model) -> None:
    texts = ["the cat", "a dog"]
    answer = ask(server, "/api/embed", input=texts, stream=None)
    assert np.allclose(answer["embeddings"], endless_model.embed(texts), atol=1e-6)
    assert answer["prompt_eval_count"] == sum(len(endless_model.encode(text)) for text in texts)
    assert len(ask(server, "/api/embed", input="a", dimensions=4, stream=None)["embeddings"][0]) == 4


def test_the_end_of_a_text_that_is_too_long_to_embed_is_left_out(tiny_bundle: Any) -> None:
    """What the tokenizer adds before and after a text stays."""
    with recycle_onnx.load(tiny_bundle, threads=1) as model:
        around = TemplateProcessing(single=f"{tiny.END} $A {tiny.END}", special_tokens=[(tiny.END, 0)])
        model.tokenizer.post_processor = around
        words = model.tokenizer.encode("cat " * 200, add_special_tokens=False).ids
        expected = model.embed([0, *words[: model.context_length - 3], 0])
        with serving(model) as running:
            for fields in ({"input": "cat " * 200}, {"input": ["cat " * 200], "truncate": True}):
                answer = ask(running, "/api/embed", **fields, stream=None)
                assert np.allclose(answer["embeddings"], [expected], atol=1e-6)
                assert answer["prompt_eval_count"] == model.context_length - 1
            older = ask(running, "/api/embeddings", prompt="cat " * 200, stream=None)
            assert np.allclose(older["embedding"], expected, atol=1e-6)
            short = ask(running, "/api/embed", input="the cat", stream=None)["embeddings"]
            assert np.allclose(short, [model.embed("the cat")], atol=1e-6)


def test_what_older_clients_ask_for_is_there(server: Running, endless_model: Model) -> None:
    answer = ask(server, "/api/embeddings", prompt="the cat", options={"num_ctx": 5}, keep_alive=0, stream=None)
    assert set(answer) == {"embedding"}
    assert np.allclose(answer["embedding"], endless_model.embed("the cat"), atol=1e-6)


def test_the_model_is_loaded_for_good(server: Running, endless_model: Model) -> None:
    (model,) = get(server, "/api/ps")["models"]
    (listed,) = get(server, "/api/tags")["models"]
    assert {name: model[name] for name in ("name", "model", "size", "digest", "details")} == {
        name: value for name, value in listed.items() if name != "modified_at"
    }
    assert (model["context_length"], model["expires_at"][:4]) == (endless_model.context_length, "9999")


def test_the_model_is_listed_and_shown(server: Running, endless_model: Model) -> None:
    (model,) = get(server, "/api/tags")["models"]
    manifest = endless_model.bundle.manifest
    assert (model["name"], model["digest"]) == (NAME, endless_model.bundle.digest)
    assert model["size"] == sum(file.bytes for file in manifest.files.values())
    assert model["details"]["family"] == "llama"
    assert model["details"]["quantization_level"] == "FP32"
    shown = ask(server, "/api/show", model=NAME, stream=None)
    assert shown["model_info"]["llama.context_length"] == 32768
    assert shown["capabilities"] == ["completion", "embedding", "tools"]
    assert get(server, "/api/version") == {"version": recycle_onnx.__version__}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, server: Running) -> None:
    path, fields, words = REFUSED[name]
    status, answer = post(server, path, json.dumps(fields).encode())
    assert status == 400
    assert set(answer) == {"error"}
    assert words in answer["error"]


def test_errors_of_all_kinds_have_the_same_shape(endless_model: Model) -> None:
    with serving(endless_model, Limits(generation_seconds=1), strict=True) as running:
        assert post(running, CHAT, b'{"model": "llama3"}')[1] == {
            "error": f"no model 'llama3' here; this server has '{NAME}'"
        }
        assert post(running, "/api/pull", b"{}") == (404, {"error": "POST /api/pull: Not Found"})
        assert "application/json" in post(running, CHAT, b"{}", **{"Content-Type": "text/plain"})[1]["error"]
        made = lines(running, CHAT, model=NAME, messages=USER, options={"num_predict": -1})
        assert made[-1] == {"error": "the answer took more than 1 s"}
        wait_until(lambda: running.busy == 0)

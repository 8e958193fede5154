"""onnxruntime-genai opens a bundle as it is, and its greedy text is that of the strategy `full`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.export import Quantization, export, quantize_bundle
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.prompts import LONG_STORY, story_prompts

pytestmark = pytest.mark.peers

NEW_TOKENS = 48
PROMPTS = [*story_prompts(200)[::25], "Once upon a time", "Der Bär aß 🍯"]


def genai(bundle: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of onnxruntime-genai, in its own environment."""
    interpreter = os.environ.get("RECYCLE_ONNX_PEERS")
    assert interpreter, "RECYCLE_ONNX_PEERS names no interpreter; run `make test-peers`"
    command = [interpreter, str(Path(__file__).parent / "genai_generate.py"), str(bundle)]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def assert_equal(answer: dict[str, Any], model: Model, prompt: str, count: int) -> None:
    expected = model.generate(prompt, max_new_tokens=count, strategy="full")
    stopped = expected.tokens[-1:] if expected.finish_reason == "stop" else []
    assert answer["prompt"] == model.encode(prompt)
    assert [*answer["tokens"], *stopped] == expected.tokens  # genai leaves out the token that ends the text
    assert answer["text"].removeprefix("<|endoftext|>").removesuffix("<|endoftext|>") == prompt + expected.text


def test_greedy_text_is_that_of_full(sample_bundle: Path, sample_model: Model) -> None:
    answers = genai(sample_bundle, [{"prompt": prompt, "new_tokens": NEW_TOKENS} for prompt in PROMPTS])
    for answer, prompt in zip(answers, PROMPTS, strict=True):
        assert_equal(answer, sample_model, prompt, NEW_TOKENS)


def test_a_bundle_of_the_standard_flavour_opens_too(standard_bundle: Path, sample_model: Model) -> None:
    answers = genai(standard_bundle, [{"prompt": LONG_STORY, "new_tokens": NEW_TOKENS}])
    assert_equal(answers[0], sample_model, LONG_STORY, NEW_TOKENS)


def test_a_prompt_of_several_chunks_and_a_rewind(sample_bundle: Path, sample_model: Model) -> None:
    assert len(sample_model.encode(LONG_STORY)) > 300
    requests = [
        {"prompt": LONG_STORY, "new_tokens": NEW_TOKENS},
        {"prompt": PROMPTS[0], "new_tokens": NEW_TOKENS, "rewind": 9},
    ]
    answers = genai(sample_bundle, requests)
    for answer, request in zip(answers, requests, strict=True):
        assert_equal(answer, sample_model, str(request["prompt"]), NEW_TOKENS)


def test_a_story_ends_where_ours_ends(sample_bundle: Path, sample_model: Model) -> None:
    def ends(prompt: str) -> bool:
        return sample_model.generate(prompt, max_new_tokens=400, strategy="full").finish_reason == "stop"

    prompts = [prompt for prompt in PROMPTS if ends(prompt)]
    assert prompts, "no story of the sample ends within 400 tokens"
    answers = genai(sample_bundle, [{"prompt": prompt, "new_tokens": 400} for prompt in prompts])
    for answer, prompt in zip(answers, prompts, strict=True):
        assert_equal(answer, sample_model, prompt, 400)


def test_another_rope_base_gives_another_text(sample_model: Model, other_rope_bundle: Path) -> None:
    answers = genai(other_rope_bundle, [{"prompt": prompt, "new_tokens": NEW_TOKENS} for prompt in PROMPTS])
    ours = [sample_model.generate(prompt, max_new_tokens=NEW_TOKENS, strategy="full").tokens for prompt in PROMPTS]
    assert sum(answer["tokens"] != tokens for answer, tokens in zip(answers, ours, strict=True)) > len(PROMPTS) / 2


def test_a_head_size_that_needs_the_rotary_operator_works_too(tmp_path: Path) -> None:
    config = tiny.tiny_config(head_dim=8, num_heads=4, num_kv_heads=2, context_length=128)
    export(tiny.write_base(tmp_path / "base", config), tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle")
    [answer] = genai(tmp_path / "bundle", [{"prompt": "the cat sat on", "new_tokens": 40}])
    assert answer["tokens"] == model.generate("the cat sat on", max_new_tokens=40).tokens


def test_further_outputs_for_the_module_are_no_obstacle(tmp_path: Path) -> None:
    config = tiny.tiny_config(num_layers=3, context_length=128)
    attach(
        tiny.write_base(tmp_path / "base", config), tmp_path / "c", NewModule(tap=("layer.1", "layer.2", "final_pre"))
    )
    export(tmp_path / "c", tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle")
    [answer] = genai(tmp_path / "bundle", [{"prompt": "the cat sat on", "new_tokens": 40}])
    assert answer["tokens"] == model.generate("the cat sat on", strategy="full", max_new_tokens=40).tokens


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_bundle_opens_too(bits: int, sample_bundle: Path, tmp_path: Path) -> None:
    quantize_bundle(sample_bundle, tmp_path / "small", Quantization(bits=bits))
    model = recycle_onnx.load(tmp_path / "small")
    answers = genai(tmp_path / "small", [{"prompt": prompt, "new_tokens": NEW_TOKENS} for prompt in PROMPTS])
    for answer, prompt in zip(answers, PROMPTS, strict=True):
        assert_equal(answer, model, prompt, NEW_TOKENS)

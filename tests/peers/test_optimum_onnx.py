"""optimum-onnx's ORTModelForCausalLM opens a bundle's `model.onnx`, and its greedy text is that of `full`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.export import Quantization, export, quantize_bundle
from recycle_onnx.runtime.model import Model
from tests.helpers.prompts import story_prompts
from tests.reference.families import CASES, write
from tests.reference.models import SAMPLE, shared_folder

pytestmark = pytest.mark.peers

NEW_TOKENS = 40
STORIES = story_prompts(200)[::40]
ANIMALS = ["the cat sat on the mat, the dog sat", "a hen ran to the pen"]
QUANTIZED = ("llama", "qwen3", "gemma3", "gpt2")


def request(bundle: Path, prompts: list[str], new_tokens: int = NEW_TOKENS, **options: bool) -> dict[str, Any]:
    settings = {"use_io_binding": False, "set_sizes": False, **options}
    return {"bundle": str(bundle), "prompts": prompts, "new_tokens": new_tokens, **settings}


def optimum_onnx(requests: list[dict[str, Any]]) -> list[Any]:
    """The answers of optimum-onnx, in its own environment."""
    interpreter = os.environ.get("RECYCLE_ONNX_OPTIMUM_ONNX")
    if not interpreter:
        pytest.skip("RECYCLE_ONNX_OPTIMUM_ONNX names no interpreter that has optimum-onnx; run `make test-peers`")
    command = [interpreter, str(Path(__file__).parent / "optimum_onnx_generate.py")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def ours(model: Model, prompts: list[str], new_tokens: int = NEW_TOKENS) -> list[dict[str, list[int]]]:
    """What `optimum_onnx` should answer: prompt and new ids of `full`."""
    return [
        {
            "prompt": model.encode(prompt),
            "tokens": model.generate(prompt, max_new_tokens=new_tokens, strategy="full").tokens,
        }
        for prompt in prompts
    ]


@pytest.mark.parametrize("name", ["sample", "stories260K"])
def test_greedy_text_is_that_of_full(name: str, tmp_path: Path) -> None:
    export(SAMPLE if name == "sample" else shared_folder("models/stories260K"), tmp_path / "fp32")
    quantize_bundle(tmp_path / "fp32", tmp_path / "int4", Quantization(bits=4))
    bundles = [tmp_path / "fp32", tmp_path / "int4"]
    requests = [request(bundle, STORIES, use_io_binding=bound) for bundle in bundles for bound in (False, True)]
    expected = [ours(recycle_onnx.load(bundle), STORIES) for bundle in bundles for _ in range(2)]
    assert optimum_onnx(requests) == expected


def test_every_family_opens_once_the_sizes_of_its_caches_are_set(tmp_path: Path) -> None:
    requests, expected = [], []
    for case in CASES:
        folder = tmp_path / case
        bundles = [folder / "fp32"]
        export(write(case, folder / "model"), bundles[0])
        if case in QUANTIZED:
            quantize_bundle(bundles[0], folder / "int4", Quantization(bits=4))
            bundles.append(folder / "int4")
        for bundle in bundles:
            answer = ours(recycle_onnx.load(bundle), ANIMALS, 20)
            for bound in (False, True):
                requests.append(request(bundle, ANIMALS, 20, set_sizes=True, use_io_binding=bound))
                expected.append(answer)
    wrong = [
        (asked["bundle"], asked["use_io_binding"], answer)
        for asked, answer, wanted in zip(requests, optimum_onnx(requests), expected, strict=True)
        if answer != wanted
    ]
    assert not wrong


def test_a_head_size_that_optimum_guesses_wrong_is_an_error_and_no_other_text(tmp_path: Path) -> None:
    """When this fails, optimum-onnx reads `head_dim`: then docs/interoperability.md can say so."""
    export(write("qwen3", tmp_path / "model"), tmp_path / "bundle")
    [answer] = optimum_onnx([request(tmp_path / "bundle", ANIMALS, 4)])
    assert "index: 3 Got: 16 Expected: 32" in answer["error"]


def test_another_rope_base_gives_another_text(sample_model: Model, other_rope_bundle: Path) -> None:
    [answers] = optimum_onnx([request(other_rope_bundle, STORIES)])
    same = [theirs == wanted for theirs, wanted in zip(answers, ours(sample_model, STORIES), strict=True)]
    assert sum(same) < len(STORIES) / 2

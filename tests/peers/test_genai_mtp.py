"""onnxruntime-genai's MtpGenerator runs the module as its MTP head: the text of `full`, in fewer runs of the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.export import Quantization, export, quantize_bundle
from recycle_onnx.export.genai_mtp import write_mtp
from recycle_onnx.runtime.model import Model
from tests.conftest import SAMPLE
from tests.helpers import tiny
from tests.helpers.prompts import story_prompts

pytestmark = pytest.mark.peers

NEW_TOKENS = 48
PROMPTS = story_prompts(200)[::20]


def with_mtp(folder: Path, model: Model, prompts: list[str], draft_tokens: int) -> list[dict[str, Any]]:
    """The answers of MtpGenerator, in genai's own environment."""
    interpreter = os.environ.get("RECYCLE_ONNX_PEERS")
    assert interpreter, "RECYCLE_ONNX_PEERS names no interpreter; run `make test-peers`"
    requests = [
        {"prompt": model.encode(prompt), "new_tokens": NEW_TOKENS, "draft_tokens": draft_tokens} for prompt in prompts
    ]
    command = [interpreter, str(Path(__file__).parent / "genai_mtp.py"), str(folder)]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def assert_text_of_full(answers: list[dict[str, Any]], model: Model, prompts: list[str]) -> None:
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.get("tokens") == model.generate(prompt, max_new_tokens=NEW_TOKENS, strategy="full").tokens, answer


@pytest.mark.parametrize(("draft_tokens", "flavour"), [(1, "sample"), (3, "sample"), (3, "standard")])
def test_the_text_is_that_of_full_in_fewer_runs(
    draft_tokens: int, flavour: str, sample_model: Model, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_mtp(request.getfixturevalue(f"{flavour}_bundle"), tmp_path / "mtp")
    answers = with_mtp(tmp_path / "mtp", sample_model, PROMPTS, draft_tokens)
    assert_text_of_full(answers, sample_model, PROMPTS)
    proposed, kept = (sum(answer[name] for answer in answers) for name in ("proposed", "kept"))
    assert kept > 0.7 * proposed
    assert sum(answer["runs"] for answer in answers) < 0.7 * NEW_TOKENS * len(PROMPTS)


def test_int4_and_a_module_of_two_layers_open_too(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config(num_layers=3, context_length=128))
    attach(base, tmp_path / "checkpoint", NewModule(num_layers=2))
    export(tmp_path / "checkpoint", tmp_path / "fp32")
    quantize_bundle(tmp_path / "fp32", tmp_path / "int4", Quantization(bits=4))
    for name in ("fp32", "int4"):
        write_mtp(tmp_path / name, tmp_path / f"{name}-mtp")
        model = recycle_onnx.load(tmp_path / name)
        prompts = ["the cat sat on", "a hen ran to"]
        assert_text_of_full(with_mtp(tmp_path / f"{name}-mtp", model, prompts, 2), model, prompts)


def test_the_module_is_what_proposes(sample_model: Model, tmp_path: Path) -> None:
    """Another module, at random: the same text, and next to nothing kept."""
    shutil.copytree(SAMPLE, tmp_path / "base", ignore=shutil.ignore_patterns("recipe", "recycler"))
    attach(tmp_path / "base", tmp_path / "checkpoint", NewModule(init="random", seed=5))
    export(tmp_path / "checkpoint", tmp_path / "bundle")
    write_mtp(tmp_path / "bundle", tmp_path / "mtp")
    answers = with_mtp(tmp_path / "mtp", sample_model, PROMPTS, 1)
    assert_text_of_full(answers, sample_model, PROMPTS)
    assert sum(answer["kept"] for answer in answers) < 0.1 * sum(answer["proposed"] for answer in answers)


def test_float32_logits_are_what_genai_refuses_on_the_cpu(
    sample_bundle: Path, sample_model: Model, tmp_path: Path
) -> None:
    """When this fails, genai has learnt it: then `write_mtp` need not touch the graph."""
    write_mtp(sample_bundle, tmp_path / "mtp")
    shutil.copyfile(sample_bundle / "model.onnx", tmp_path / "mtp" / "main" / "model.onnx")
    [answer] = with_mtp(tmp_path / "mtp", sample_model, PROMPTS[:1], 1)
    assert answer == {"error": "Cast - input and output types are the same"}

"""Every family against transformers: graphs and torch model, full model and module, from attach to generate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import recycle_onnx
from recycle_onnx.checkpoint import attach
from recycle_onnx.errors import InputError
from recycle_onnx.export import Quantization, export
from recycle_onnx.runtime.half import Half
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.trainer import train
from tests.prompts import story_prompts
from tests.reference.families import CASES, reference, write
from tests.reference.models import torch_model

TOLERANCE = 1e-4
LENGTH = 40
SPLITS = ([40], [27, 1, 2, 5, 1, 1, 1, 2], [1, 5, 5, 1, 2, 26])
IDS = np.random.default_rng(3).integers(1, 300, LENGTH).tolist()


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(name, tmp_path_factory.mktemp("family") / "model")
    attach(folder, folder, num_layers=2)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    export(checkpoint, checkpoint.parent / "bundle")
    return checkpoint.parent / "bundle"


@torch.no_grad()
def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and final hidden states of transformers over the whole text."""
    output = reference(name)(torch.tensor([IDS]), output_hidden_states=True, use_cache=False)
    return output.logits[0].numpy(), output.hidden_states[-1][0].numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def read(half: Half, ids: list[int], hidden: np.ndarray | None, splits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and hidden states, the text cut into calls."""
    states = np.empty((len(ids), half.spec.hidden_size), np.float32)
    rows, start = [], 0
    for count in splits:
        piece = slice(start, start + count)
        rows.append(half.read(ids[piece], None if hidden is None else hidden[piece], states[piece], keep=count).copy())
        start += count
    assert start == len(ids)
    return np.concatenate(rows), states


@pytest.mark.parametrize("splits", SPLITS, ids=str)
def test_the_graph_gives_what_transformers_gives(name: str, bundle: Path, splits: list[int]) -> None:
    full = recycle_onnx.load(bundle).decoder("full").full
    for found, wanted in zip(read(full, IDS, None, splits), expected(name), strict=True):
        assert difference(found, wanted) < TOLERANCE


def test_the_torch_model_gives_what_transformers_gives(name: str, checkpoint: Path) -> None:
    with torch.no_grad():
        output = torch_model(checkpoint).full(torch.tensor([IDS]))
    for found, wanted in zip(output, expected(name), strict=True):
        assert difference(found[0].numpy(), wanted) < TOLERANCE


def test_the_module_in_the_graph_is_the_module_in_torch(name: str, checkpoint: Path, bundle: Path) -> None:
    hidden = expected(name)[1][:-1]
    with torch.no_grad():
        wanted = torch_model(checkpoint).recycle(torch.tensor([IDS[1:]]), torch.from_numpy(hidden)[None])
    for first, *others in SPLITS:
        module = recycle_onnx.load(bundle).decoder("verify").recycler
        assert module is not None
        splits = [count for count in (first - 1, *others) if count]
        for found, torchs in zip(read(module, IDS[1:], hidden, splits), wanted, strict=True):
            assert difference(found, torchs[0].numpy()) < TOLERANCE


def edited(checkpoint: Path, out: Path, **changes: Any) -> float:
    """How far the graph of a base with another config is from the one that it belongs to."""
    shutil.copytree(checkpoint, out / "model", ignore=shutil.ignore_patterns("recycler"))
    path = out / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    export(out / "model", out / "bundle")
    found = read(recycle_onnx.load(out / "bundle").decoder("full").full, IDS, None, [LENGTH])
    return difference(found[0], expected(json.loads((out / "name").read_text()))[0])


@pytest.mark.parametrize("name", ["mistral", "qwen2", "smollm3", "phi3", "gemma2", "gemma3"], scope="module")
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_a_window_that_is_off_by_one_fails_the_comparison(
    name: str, step: int, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "name").write_text(json.dumps(name))
    window = json.loads((checkpoint / "config.json").read_text())["sliding_window"]
    found = edited(checkpoint, tmp_path, sliding_window=window + step)
    assert (found < TOLERANCE) == (step == 0)


@pytest.mark.parametrize("name", ["llama", "llama, linear", "qwen3", "phi3", "gpt_neox"], scope="module")
def test_unscaled_rotary_positions_fail_the_comparison(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "name").write_text(json.dumps(name))
    plain = {"rope_type": "default", "rope_theta": 1000.0}
    changes = {"rope_parameters": plain, "partial_rotary_factor": None}
    assert edited(checkpoint, tmp_path, **changes) > TOLERANCE


FIRST = {model_type: name for name, (model_type, _) in reversed(CASES.items())}.values()


@pytest.fixture(scope="module", params=sorted(FIRST))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and module that were trained jointly for a few steps."""
    folder = write(request.param, tmp_path_factory.mktemp("trained") / "model")
    attach(folder, folder)
    (folder.parent / "text.txt").write_text(" ".join(story_prompts(60)))
    options = TrainingOptions(steps=3, batch_size=2, sequence_length=24, learning_rate=1e-3, joint=True)
    train(folder, [folder.parent / "text.txt"], options)
    export(folder, folder.parent / "bundle")
    return folder


@torch.no_grad()
def test_transformers_reads_a_base_that_was_trained(trained: Path) -> None:
    ids = torch.tensor([IDS[:24]])
    theirs, loading = AutoModelForCausalLM.from_pretrained(trained, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ours = torch_model(trained).full(ids).logits
    assert difference(theirs.eval()(ids).logits.numpy(), ours.numpy()) < TOLERANCE


def test_verify_gives_the_text_of_full_on_50_prompts(trained: Path) -> None:
    model = recycle_onnx.load(trained.parent / "bundle")
    for prompt in story_prompts(200)[::4]:
        ids = model.encode(prompt)[:12]
        texts = [model.generate(ids, max_new_tokens=12, strategy=strategy).tokens for strategy in ("full", "verify")]
        assert texts[0] == texts[1], prompt


def test_int4_generates(trained: Path) -> None:
    out = trained.parent / "int4"
    report = export(trained, out, quantization=Quantization(bits=4))
    assert report.fidelity is not None
    assert np.isfinite(report.fidelity.perplexity)
    assert report.fidelity.perplexity < 3 * report.fidelity.perplexity_fp32
    assert recycle_onnx.load(out).generate([0, 5, 9], max_new_tokens=8).tokens


def test_beyond_the_original_context_longrope_is_refused(tmp_path: Path) -> None:
    export(write("phi3", tmp_path / "model"), tmp_path / "bundle")
    with pytest.raises(InputError, match="48"):
        recycle_onnx.load(tmp_path / "bundle").generate(IDS + IDS, max_new_tokens=1)

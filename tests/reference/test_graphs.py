"""Both graphs against transformers and torch: prefill, decode steps, keys and values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint, NewModule, attach
from recycle_onnx.export import export
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.model import Model
from recycle_onnx.training.caches import new_cache
from tests.helpers import tiny
from tests.reference.models import SAMPLE, shared_folder, torch_model

TOLERANCE = 1e-4
PREFILLS = (1, 2, 7, 300)
STEPS = (1, 2, 3, 5)
SHAPES = {
    "grouped heads, untied, fused rotary": {"tied_embeddings": False, "context_length": 512},
    "heads wider than the hidden size": {"head_dim": 48, "context_length": 512},
    "head size 8, rotary operator": {"head_dim": 8, "num_heads": 4, "num_kv_heads": 2, "context_length": 512},
    "another RoPE base and epsilon": {"rope_theta": 500000.0, "rms_norm_eps": 1e-6, "context_length": 512},
}


@pytest.fixture(scope="module", params=["sample", "stories260K", *SHAPES])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "sample":
        return SAMPLE
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    if request.param == "stories260K":
        attach(shared_folder("models/stories260K"), folder, NewModule(num_layers=2, seed=3))
        return folder
    return tiny.write_checkpoint(folder, tiny.tiny_config(**SHAPES[request.param]), seed=1)


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export(checkpoint, folder)
    return recycle_onnx.load(folder)


def base_folder(checkpoint: Path) -> Path:
    with Checkpoint.open(checkpoint) as source:
        return source.base_folder


def text_ids(model: Model, length: int) -> list[int]:
    return np.random.default_rng(length).integers(3, model.decoder("full").full.spec.vocab_size, length).tolist()


def run(half: Half, ids: list[int], hidden: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All logits and hidden states of one call."""
    states = np.empty((len(ids), half.spec.hidden_size), np.float32)
    logits = half.read(ids, hidden, states, keep=len(ids))
    return logits.copy(), states


def assert_close(found: np.ndarray, expected: torch.Tensor, what: str) -> None:
    scale = float(expected.abs().max())
    difference = float(np.abs(found - expected.numpy()).max())
    assert difference <= TOLERANCE * scale, f"{what}: {difference:.2e} of {scale:.2e}"


def calls(prefill: int) -> list[int]:
    return [prefill, *STEPS]


def compare_full(decoder: Decoder, reference: LlamaForCausalLM, ids: list[int], prefill: int) -> None:
    cache = DynamicCache()
    start = 0
    for rows in calls(prefill):
        piece = ids[start : start + rows]
        with torch.no_grad():
            expected = reference(torch.tensor([piece]), past_key_values=cache, output_hidden_states=True)
        logits, hidden = run(decoder.full, piece)
        start += rows
        assert_close(logits, expected.logits[0], f"logits of {rows} tokens ending at {start}")
        assert_close(hidden, expected.hidden_states[-1][0], "hidden states")
        for index, layer in enumerate(cache.layers):
            for part, tensor in enumerate((layer.keys, layer.values)):
                array = decoder.full.cache.arrays[2 * index + part]
                assert_close(array[:, :, :start], tensor, f"layer {index}, {'kv'[part]}")


@pytest.mark.parametrize("prefill", PREFILLS)
def test_the_full_model_equals_transformers(checkpoint: Path, model: Model, prefill: int) -> None:
    reference = LlamaForCausalLM.from_pretrained(base_folder(checkpoint), dtype=torch.float32).eval()
    compare_full(model.decoder("full"), reference, text_ids(model, prefill + sum(STEPS)), prefill)


@pytest.mark.parametrize("prefill", PREFILLS)
def test_the_module_equals_torch(checkpoint: Path, model: Model, prefill: int) -> None:
    reference = torch_model(checkpoint)
    ids = text_ids(model, prefill + sum(STEPS) + 1)
    config = reference.full.config
    cache = new_cache(config, reference.recycler.config.num_layers, 1)
    with torch.no_grad():
        hidden = reference.full(torch.tensor([ids])).hidden_states
    half = model.decoder("verify").recycler
    assert half is not None
    start = 0
    for rows in calls(prefill):
        piece, states = ids[start + 1 : start + rows + 1], hidden[:, start : start + rows]
        with torch.no_grad():
            expected = reference.recycle(torch.tensor([piece]), states, cache)
        logits, out = run(half, piece, states[0].contiguous().numpy())
        start += rows
        assert_close(logits, expected.logits[0], f"logits of {rows} rows ending at {start}")
        assert_close(out, expected.hidden_states[0], "hidden states")
        for index, layer in enumerate(cache):
            for part, tensor in enumerate((layer.keys, layer.values)):
                assert_close(half.cache.arrays[2 * index + part][:, :, :start], tensor[:, :, :start], "cache")


def test_a_wrong_rope_base_fails_the_same_comparison(checkpoint: Path, model: Model, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(base_folder(checkpoint), wrong, ignore=shutil.ignore_patterns("recycler", "recipe"))
    config = json.loads((wrong / "config.json").read_text())
    config["rope_theta"] *= 1.2
    config.pop("rope_parameters", None)
    (wrong / "config.json").write_text(json.dumps(config))
    reference = LlamaForCausalLM.from_pretrained(wrong, dtype=torch.float32).eval()
    with pytest.raises(AssertionError):
        compare_full(model.decoder("full"), reference, text_ids(model, 7 + sum(STEPS)), 7)


def test_our_torch_model_equals_transformers(checkpoint: Path) -> None:
    reference = LlamaForCausalLM.from_pretrained(base_folder(checkpoint), dtype=torch.float32).eval()
    ids = torch.randint(3, reference.config.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(torch_model(checkpoint).full(ids).logits.numpy(), reference(ids).logits, "logits")

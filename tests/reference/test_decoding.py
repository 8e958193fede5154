"""Whole texts: against the published one, against plain torch, and strategies against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.export import export
from recycle_onnx.runtime.decoding.proposals import ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.trainer import train
from tests.helpers.prompts import story_prompts
from tests.reference import plain
from tests.reference.models import SAMPLE, shared_folder, torch_model

PUBLISHED_TOKENS = 251


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workshop")


def randomised(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with a module of random weights, whose proposals are nearly never right."""
    attach(checkpoint, out, NewModule(num_layers=1))
    path = out / "recycler" / "model.safetensors"
    generator = np.random.default_rng(7)
    tensors = {name: 0.1 * generator.standard_normal(value.shape) for name, value in load_file(path).items()}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, path)
    return out


@pytest.fixture(scope="module")
def checkpoints(workshop: Path) -> dict[str, Path]:
    """The sample and stories260K, each with a trained and with a random module."""
    small = shared_folder("models/stories260K")
    trained = workshop / "small-trained"
    attach(small, trained)
    options = TrainingOptions(steps=120, batch_size=16, sequence_length=128, learning_rate=3e-3)
    train(trained, [shared_folder("text/tinystories_train_head_2M.txt")], options)
    return {
        "sample": SAMPLE,
        "sample, random": randomised(SAMPLE, workshop / "sample-random"),
        "stories260K": trained,
        "stories260K, random": randomised(small, workshop / "small-random"),
    }


NAMES = ("sample", "sample, random", "stories260K", "stories260K, random")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, checkpoints: dict[str, Path], workshop: Path) -> Model:
    export(checkpoints[name], workshop / f"{name}.bundle", force=True)
    return recycle_onnx.load(workshop / f"{name}.bundle")


@pytest.mark.parametrize("name", ["stories260K", "stories260K, random"], indirect=True, scope="module")
@pytest.mark.parametrize("strategy", ["full", "verify"])
def test_the_published_text_comes_out_character_for_character(model: Model, strategy: str) -> None:
    published = (shared_folder("models/stories260K") / "reference.txt").read_text().rstrip("\n")
    prompt = "Once upon a time"
    count = len(model.encode(published)) - len(model.encode(prompt))
    assert count >= PUBLISHED_TOKENS
    assert prompt + model.generate(prompt, max_new_tokens=count, strategy=strategy).text == published


def test_verify_gives_the_tokens_of_full_on_200_prompts(model: Model, name: str) -> None:
    proposed = accepted = 0
    for prompt in story_prompts(200):
        results = [model.generate(prompt, max_new_tokens=64, strategy=strategy) for strategy in ("full", "verify")]
        assert results[0].tokens == results[1].tokens, prompt
        proposed += results[1].stats.proposed
        accepted += results[1].stats.accepted
    rate = accepted / proposed
    print(f"{name}: acceptance {rate:.3f}")
    assert rate < 0.1 if "random" in name else rate > 0.3


def test_alternate_equals_plain_torch_on_50_prompts(model: Model, name: str, checkpoints: dict[str, Path]) -> None:
    reference = torch_model(checkpoints[name])
    for index, prompt in enumerate(story_prompts(200)[::4]):
        count = 20 + index % 7
        result = model.generate(prompt, max_new_tokens=count, strategy="alternate")
        assert result.tokens == plain.alternate(reference, model.encode(prompt), count, model.stop_ids), prompt
        assert result.stats.full_runs == -(-len(result.tokens) // 2)
        assert result.stats.recycle_runs == len(result.tokens) // 2


def test_chains_equal_plain_torch(model: Model, name: str, checkpoints: dict[str, Path]) -> None:
    reference = torch_model(checkpoints[name])
    for prompt in story_prompts(200)[::20]:
        ids = model.encode(prompt)
        decoder = model.decoder("verify")
        first = int(decoder.prefill(ids)[-1].argmax())
        found = ModuleProposer(decoder, Sampling(), 4, 0.0).propose([first], len(ids) + 1, 4)
        assert found == plain.chain(reference, [*ids, first], 4), prompt


def test_the_same_seed_gives_the_same_sample_under_full_and_verify(model: Model) -> None:
    for index, prompt in enumerate(story_prompts(200)):
        options = {
            "temperature": (0.5, 0.8, 1.0, 1.4)[index % 4],
            "top_p": (1.0, 0.9, 0.5)[index % 3],
            "top_k": (0, 40)[index % 2],
            "seed": index,
            "max_new_tokens": 48,
        }
        first, second = (model.generate(prompt, strategy=strategy, **options) for strategy in ("full", "verify"))
        assert first.tokens == second.tokens, (prompt, options)

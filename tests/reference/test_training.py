"""Training improves the module, leaves a frozen base alone, and survives an interruption."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.training.trainer import Progress, TrainingOptions, train
from tests import tiny

TEXT = "The cat sat on the mat and the dog sat on the log. A hen ran to the pen, and the fox ran home. "
OPTIONS = TrainingOptions(steps=30, batch_size=4, sequence_length=32, learning_rate=5e-3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), seed=2)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join([TEXT * 3] * 30))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(checkpoint: Path, text: Path, options: TrainingOptions) -> list[Progress]:
    seen: list[Progress] = []
    train(checkpoint, [text], options, report=seen.append)
    return seen


def test_a_frozen_base_is_not_touched_and_the_module_learns_it(checkpoint: Path, text: Path) -> None:
    before = digest(checkpoint / "model.safetensors")
    seen = losses(checkpoint, text, OPTIONS)
    assert seen[-1].recycle < seen[0].recycle - 0.1
    assert digest(checkpoint / "model.safetensors") == before


def test_joint_training_improves_both_halves_and_the_base_loads_in_transformers(checkpoint: Path, text: Path) -> None:
    seen = losses(checkpoint, text, TrainingOptions(**{**vars(OPTIONS), "joint": True}))
    assert seen[-1].next_token < seen[0].next_token - 0.5
    assert seen[-1].recycle < seen[0].recycle - 0.5
    with Checkpoint.open(checkpoint):
        LlamaForCausalLM.from_pretrained(checkpoint)


def test_the_same_seed_gives_the_same_losses(tmp_path: Path, text: Path) -> None:
    runs = [losses(tiny.write_checkpoint(tmp_path / name, tiny.tiny_config()), text, OPTIONS) for name in "ab"]
    assert [step.recycle for step in runs[0]] == [step.recycle for step in runs[1]]


def test_the_export_compares_its_graphs_with_the_trained_reference(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    train(checkpoint, [text], OPTIONS)
    difference = export(checkpoint, tmp_path / "bundle").self_check.against_reference
    assert difference is not None
    assert difference < 1e-4


def test_ctrl_c_keeps_what_was_learnt(checkpoint: Path, text: Path) -> None:
    before = digest(checkpoint / "recycler" / "model.safetensors")

    def interrupt(now: Progress) -> None:
        if now.step == 5:
            raise KeyboardInterrupt

    result = train(checkpoint, [text], OPTIONS, report=interrupt)
    assert (result.interrupted, result.steps) == (True, 5)
    assert digest(checkpoint / "recycler" / "model.safetensors") != before
    with Checkpoint.open(checkpoint) as source:
        assert source.recycler is not None
        assert source.recycler.training["runs"][-1]["steps"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"batch_size": 0}, "--batch-size"),
        ({"sequence_length": 4}, "--sequence-length"),
        ({"sequence_length": 4096}, "context"),
        ({"learning_rate": -1.0}, "--lr"),
    ],
)
def test_options_out_of_range_are_refused(checkpoint: Path, text: Path, change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(checkpoint, [text], TrainingOptions(**{**vars(OPTIONS), **change}))


def test_missing_empty_and_short_text_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for content in (None, "", "too short"):
        path = tmp_path / "data.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match=r"data\.txt"):
            train(checkpoint, [path], OPTIONS)


def test_a_diverging_training_stops_and_keeps_the_module(checkpoint: Path, text: Path) -> None:
    before = digest(checkpoint / "recycler" / "model.safetensors")
    options = TrainingOptions(**{**vars(OPTIONS), "learning_rate": 0.99, "joint": True, "recycle_weight": float("inf")})
    with pytest.raises(InputError, match="lower --lr"):
        train(checkpoint, [text], options)
    assert digest(checkpoint / "recycler" / "model.safetensors") == before

"""What `--estimate` says is what the training then takes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recycle_onnx.training.estimate import estimate
from recycle_onnx.training.options import Progress, TrainingOptions
from recycle_onnx.training.setup import set_up
from recycle_onnx.training.stepper import Stepper
from recycle_onnx.training.trainer import train
from tests.helpers import tiny
from tests.helpers.command import names, run

TEXT = "The cat sat on the mat and the dog sat on the log. A hen ran to the pen, and the fox ran home. "
OPTIONS = TrainingOptions(steps=30, batch_size=8, sequence_length=32)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join([TEXT * 3] * 30))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())


def test_an_estimate_leaves_the_checkpoint_alone(checkpoint: Path, text: Path) -> None:
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    result = run("train", checkpoint, "-d", text, "--estimate", "--sequence-length", 32)
    assert result.exit_code == 0, result.output
    for word in ("tokens to train on", "hours", "memory", "optimizer", "disk", "steps"):
        assert word in result.stdout
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    assert "training.jsonl" not in names(checkpoint)


def test_steps_tokens_and_disk_are_those_of_the_training(checkpoint: Path, text: Path) -> None:
    arguments = ("train", checkpoint, "-d", text, "--tokens", 5000, "--batch-size", 8, "--sequence-length", 32)
    found = json.loads(run(*arguments, "--estimate", "--json").stdout)
    result = json.loads(run(*arguments, "--json").stdout)
    assert found["steps"] == result["steps"] == math.ceil(5000 / (8 * 32))
    assert found["tokens"] == result["steps"] * 8 * 32
    before = found["writing_hours"] + found["reading_hours"]
    assert found["hours"] == pytest.approx(before + found["steps"] * found["seconds_a_step"] / 3600)
    assert found["writing_hours"] == 0 < found["reading_hours"]
    weights = (checkpoint / "recycler" / "model.safetensors").stat().st_size
    assert found["disk"]["weights"] == pytest.approx(weights, rel=0.1)
    log = (checkpoint / "training.jsonl").stat().st_size
    assert found["disk"]["log"] == pytest.approx(log, rel=0.5)


def test_the_state_to_resume_from_has_the_size_that_was_said(checkpoint: Path, text: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.step == 3:  # the first measurement is over, so there is a best step to keep
            raise KeyboardInterrupt

    found = estimate(checkpoint, [text], OPTIONS)
    train(checkpoint, [text], OPTIONS, report=interrupt)
    assert found.disk.state == pytest.approx((checkpoint / "training.pt").stat().st_size, rel=0.2)


def test_memory_is_that_of_the_tensors(checkpoint: Path, text: Path) -> None:
    found = estimate(checkpoint, [text], OPTIONS).memory
    with set_up(checkpoint, [text], [], OPTIONS, print) as setup:
        stepper = Stepper(setup)
        stepper.step(1, list(range(8)), 1e-3)
        trained = list(stepper.trained.values())
        assert found.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
        moments = [v for state in stepper.optimizer.state.values() for v in state.values() if v.dim()]
        assert found.optimizer == sum(moment.nbytes for moment in moments)
        whole = stepper.kept(list(range(8)))
        assert found.activations == pytest.approx(whole, rel=0.01)
    assert found.measured_peak is not None
    assert found.measured_peak > found.total  # Python and torch are in it too


def test_a_batch_in_parts_needs_less_and_a_base_that_learns_more(checkpoint: Path, text: Path) -> None:
    whole = estimate(checkpoint, [text], OPTIONS).memory
    parts = estimate(checkpoint, [text], replace(OPTIONS, gradient_accumulation=4)).memory
    joint = estimate(checkpoint, [text], replace(OPTIONS, joint=True)).memory
    assert parts.activations < 0.3 * whole.activations
    assert parts.logits * 4 == whole.logits
    assert joint.optimizer > 2 * whole.optimizer
    assert joint.activations > 1.2 * whole.activations


def test_a_training_that_does_not_fit_is_not_begun(
    checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a window of 32 in a batch of a hundred million needs more memory than there is
    options = replace(OPTIONS, batch_size=10**8)
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    found = estimate(checkpoint, [text], options)
    assert found.seconds_a_step is None
    assert found.hours is None
    assert found.memory.total > found.free_memory
    assert found.steps == 30

"""One process or two, a batch whole or in parts: the same training."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.training.log import read_log
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.resume import STATE
from recycle_onnx.training.trainer import train
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE
from tests.reference.launched import launch, own_processes

TEXT = "The cat sat on the mat and the dog sat on the log. A hen ran to the pen, and the fox ran home. "
OPTIONS = TrainingOptions(steps=20, batch_size=8, sequence_length=32, learning_rate=5e-3, precision="fp32")
ARGUMENTS = ("--batch-size", 8, "--sequence-length", 32, "--lr", 5e-3, "--precision", "fp32")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and POSIX signals")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(TEXT * (2 + number % 3) for number in range(30)))
    return path


def checkpoint(folder: Path) -> Path:
    return tiny.write_checkpoint(folder, tiny.tiny_config(), seed=2)


def curve(folder: Path) -> np.ndarray:
    """Losses of both halves by step."""
    return np.array([(line["next_token"], line["recycle"]) for line in read_log(folder)])


def finish(*arguments: object) -> str:
    process = launch(*arguments)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize("joint", [False, True])
def test_two_processes_train_as_one_does(joint: bool, tmp_path: Path, text: Path) -> None:
    one, two = (checkpoint(tmp_path / name) for name in ("one", "two"))
    train(one, [text], replace(OPTIONS, joint=joint))
    out = finish("train", two, "-d", text, *ARGUMENTS, "--steps", 20, "--json", *["--joint"] * joint)
    assert json.loads(out)["steps"] == 20  # one report, not two
    assert len(curve(two)) == 20
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-4)
    assert np.abs(curve(one) - curve(one)[0]).max() > 0.05  # it learns: the first loss would not do
    with Checkpoint.open(two) as source:
        assert source.recycler is not None
        assert source.recycler.training["runs"][0]["held_out_recycle"] > 0


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_trains_as_the_whole_does(parts: int, tmp_path: Path, text: Path) -> None:
    whole, parted = (checkpoint(tmp_path / name) for name in ("whole", "parted"))
    train(whole, [text], OPTIONS)
    train(parted, [text], replace(OPTIONS, gradient_accumulation=parts))
    np.testing.assert_allclose(curve(parted), curve(whole), rtol=1e-4)


def test_a_training_in_parts_resumes_with_the_same_losses(tmp_path: Path, text: Path) -> None:
    whole, parted = (checkpoint(tmp_path / name) for name in ("whole", "parted"))
    options = replace(OPTIONS, gradient_accumulation=4)

    def interrupt(now: object) -> None:
        if len(read_log(parted)) == 7:
            raise KeyboardInterrupt

    train(whole, [text], options)
    train(parted, [text], options, report=interrupt)
    train(parted, [text], options, resume=True)
    np.testing.assert_array_equal(curve(parted), curve(whole))


def test_ctrl_c_ends_both_processes_and_resuming_gives_the_same_losses(tmp_path: Path, text: Path) -> None:
    whole, parted = (checkpoint(tmp_path / name) for name in ("whole", "parted"))
    arguments = ("-d", text, *ARGUMENTS, "--steps", 80, "--gradient-accumulation", 2)
    finish("train", whole, *arguments)
    process = launch("train", parted, *arguments)
    while len(read_log(parted)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert own_processes(parted) == []
    assert 3 <= len(read_log(parted)) < 80
    assert (parted / STATE).exists()
    finish("train", parted, *arguments, "--resume")
    np.testing.assert_array_equal(curve(parted), curve(whole))


def test_an_error_ends_both_processes_and_is_said_once(tmp_path: Path, text: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    before = (folder / "recycler" / "model.safetensors").read_bytes()
    arguments = ("-d", text, *ARGUMENTS, "--joint", "--recycle-weight", "inf", "--steps", 20)
    process = launch("train", folder, *arguments)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert out == ""
    assert errors.count("the loss became inf in step 1;") == 1
    assert own_processes(folder) == []
    assert (folder / "recycler" / "model.safetensors").read_bytes() == before

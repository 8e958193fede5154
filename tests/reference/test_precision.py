"""In bf16 a frozen base is held in it, the module learns in float32, and exports are still checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recycle_onnx.checkpoint import Checkpoint, RecyclerConfig
from recycle_onnx.export import export
from recycle_onnx.training import precision
from recycle_onnx.training.data import Batch
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.objective import Objective
from recycle_onnx.training.options import Progress, TrainingOptions
from recycle_onnx.training.setup import set_up
from recycle_onnx.training.stepper import Stepper
from recycle_onnx.training.storage import load_model
from recycle_onnx.training.targets import base_targets
from recycle_onnx.training.trainer import train
from tests.helpers import tiny

TEXT = "The cat sat on the mat and the dog sat on the log. A hen ran to the pen, and the fox ran home. "
OPTIONS = TrainingOptions(steps=30, batch_size=4, sequence_length=32, learning_rate=5e-3, precision="bf16")

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(params=[True, False], ids=["multiplies bf16", "widens it"], autouse=True)
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of processor; either way works on any."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: request.param)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join([TEXT * 3] * 30))
    return path


def losses(checkpoint: Path, text: Path, options: TrainingOptions) -> list[Progress]:
    seen: list[Progress] = []
    train(checkpoint, [text], options, report=seen.append)
    return seen


def test_a_frozen_base_is_held_in_bf16_and_the_module_and_its_optimiser_in_float32(tmp_path: Path, text: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), dtype="bfloat16")
    with set_up(folder, [text], [], OPTIONS, print) as setup:
        stepper = Stepper(setup)
        stepper.step(1, list(range(4)), 1e-3)
        assert {p.dtype for p in setup.model.full.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in setup.model.recycler.parameters()} == {torch.float32}
        moments = [v for state in stepper.optimizer.state.values() for v in state.values() if v.dim()]
        assert {moment.dtype for moment in moments} == {torch.float32}


@pytest.mark.parametrize("joint", [False, True])
def test_losses_are_near_those_in_float32(joint: bool, tmp_path: Path, text: Path) -> None:
    options = replace(OPTIONS, joint=joint)
    runs = []
    for name in ("fp32", "bf16"):
        folder = tiny.write_checkpoint(tmp_path / name, tiny.tiny_config(), seed=2)
        runs.append(losses(folder, text, replace(options, precision=name)))
    fine, coarse = runs
    if not joint or precision.multiplies_bf16(torch.device("cpu")):
        assert coarse[0].recycle != fine[0].recycle
    assert [now.recycle for now in coarse] == pytest.approx([now.recycle for now in fine], rel=0.03)
    assert coarse[-1].recycle < coarse[0].recycle - 0.1


def test_matrices_are_multiplied_in_bf16_where_that_is_faster() -> None:
    model = tiny_model()
    ids = torch.randint(0, 300, (2, 16))
    seen: set[torch.dtype] = set()
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    batch = Batch(ids, base_targets(model.full, ids))
    seen.clear()
    Objective(model, 2, "bf16", None)(batch)
    assert seen == {torch.bfloat16 if precision.multiplies_bf16(ids.device) else torch.float32}
    seen.clear()
    Objective(model, 2, "fp32", None)(batch)
    assert seen == {torch.float32}


def tiny_model() -> RecycleGPT:
    return RecycleGPT(tiny.tiny_config(), RecyclerConfig(num_layers=1))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_the_export_is_checked_against_float32_whatever_the_base_was_held_in(
    stored: str, tmp_path: Path, text: Path
) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), seed=2, dtype=stored)
    train(folder, [text], OPTIONS)
    difference = export(folder, tmp_path / "bundle").self_check.against_reference
    assert difference is not None
    assert difference < 1e-4


def test_what_is_widened_gives_the_gradient_of_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen base in bf16 whose weights are bf16's anyway, computed in float32: the same loss and gradient."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: False)  # a processor that does would round its products
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), dtype="bfloat16")
    ids = torch.randint(0, 300, (2, 16))
    gradients, losses, batch = [], [], None
    with Checkpoint.open(folder) as source:
        for kind, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            model = load_model(source, kind)
            batch = batch or Batch(ids, base_targets(model.full, ids))  # bf16 would round the base's states
            loss = Objective(model, 3, name, None)(batch).recycle
            loss.backward()
            losses.append(loss.detach())
            gradients.append([p.grad for p in model.recycler.parameters()])
            assert {p.dtype for p in model.full.parameters()} == {kind}
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_base_in_bf16_is_the_one_in_float32_rounded(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())
    with Checkpoint.open(folder) as source:
        fine, coarse = load_model(source), load_model(source, torch.bfloat16)
    rounded: dict[str, Tensor] = dict(coarse.full.named_parameters())
    for name, parameter in fine.full.named_parameters():
        torch.testing.assert_close(rounded[name], parameter.bfloat16(), rtol=0, atol=0)
    for name, buffer in fine.full.named_buffers():
        torch.testing.assert_close(dict(coarse.full.named_buffers())[name], buffer, rtol=0, atol=0)


def test_the_base_writes_its_own_text_in_bf16_too(tmp_path: Path, text: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), seed=2)
    seen = losses(folder, text, replace(OPTIONS, regenerate=True, temperature=1.0))
    assert seen[-1].recycle < seen[0].recycle

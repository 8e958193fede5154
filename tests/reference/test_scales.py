"""Tuned scales: codes stay, and the graph comes closer to float32."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from recycle_onnx.bundle import Manifest
from recycle_onnx.cache import cache_folder
from recycle_onnx.cli import quantization
from recycle_onnx.cli.quantization import QuantizationChoices
from recycle_onnx.export import Calibration, Quantization, QuantizeOptions, quantize_bundle
from recycle_onnx.export.block_quantizer import dequantize, quantize
from recycle_onnx.export.calibrated import calibrate
from recycle_onnx.export.calibrated.scales import _cut, _grid, _joined
from recycle_onnx.export.fidelity import Fidelity
from recycle_onnx.extras import is_installed
from recycle_onnx.runtime.ort.allocator import give_back
from recycle_onnx.script import Opening, Script, Turn
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.training import likeliest_loss, scales
from recycle_onnx.training.block_linear import BlockLinear
from recycle_onnx.training.likeliest_loss import divergence
from recycle_onnx.tuning import Tuner

CALIBRATED = Quantization(method="calibrated")


def test_products_and_their_gradients_are_those_of_the_matrix() -> None:
    random = np.random.default_rng(0)
    how = Quantization(keep=())
    blocks = quantize(random.standard_normal((24, 64)).astype(np.float32), how)
    layer = BlockLinear(_cut([_grid(blocks, how)], [10, 14])[1], None, torch.float32)
    x = torch.from_numpy(random.standard_normal((2, 5, 64)).astype(np.float32)).requires_grad_()
    weight = torch.from_numpy(dequantize(blocks, how)[10:]).requires_grad_()
    aim = torch.from_numpy(random.standard_normal((2, 5, 14)).astype(np.float32))
    torch.testing.assert_close(layer(x), x @ weight.T)
    ours = torch.autograd.grad((layer(x) * aim).sum(), [x, *layer.changes])
    of_x, of_weight = torch.autograd.grad(((x @ weight.T) * aim).sum(), [x, weight])
    torch.testing.assert_close(ours[0], of_x)
    by_block = (of_weight * weight).view(14, 2, 32).sum(-1)  # a change of 1 doubles a block
    torch.testing.assert_close(ours[1], by_block, atol=1e-4, rtol=1e-4)


def test_scales_find_back_to_the_parts_that_they_are_of() -> None:
    random = np.random.default_rng(0)
    four, eight = Quantization(keep=()), Quantization(bits=8, block_size=64, symmetric=True, keep=())
    matrix = random.standard_normal((48, 64)).astype(np.float32)
    parts = [(quantize(matrix[:40], four), four), (quantize(matrix[40:], eight), eight)]
    cut = _cut([_grid(*part) for part in parts], [32, 8, 8])
    assert [[grid.scales.shape for grid in own] for own in cut] == [[(32, 2)], [(8, 2)], [(8, 1)]]
    joined = _joined(parts, [[2 * grid.scales for grid in own] for own in cut])
    for (before, _), (after, _) in zip(parts, joined, strict=True):
        np.testing.assert_array_equal(after.scales, 2 * before.scales)
        np.testing.assert_array_equal(after.packed, before.packed)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_the_divergence_and_its_gradient_count_all_other_tokens_as_one(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeliest_loss, "ROWS", 64)  # the last piece is a shorter one
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(150, 16, generator=generator, requires_grad=True)
    head, target = torch.randn(64, 16, generator=generator), torch.randn(150, 64, generator=generator).log_softmax(-1)
    known, ids = target.topk(8, dim=-1)
    logits = states @ head.T
    logs = (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)
    ours = logs.gather(-1, ids)
    rest = 1 - known.exp().sum(-1)
    expected = (known.exp() * (known - ours)).sum(-1) + rest * (rest / (1 - ours.exp().sum(-1))).log()
    value = divergence(states, head, ids, known, cap=cap)
    torch.testing.assert_close(value, expected.mean(), atol=1e-5, rtol=1e-5)
    (theirs,) = torch.autograd.grad(3 * expected.mean(), states)
    torch.testing.assert_close(torch.autograd.grad(3 * value, states)[0], theirs, atol=1e-6, rtol=1e-4)


def made(bundle: Path, folder: Path, text: Path, tuner: Tuner | None, **options: Any) -> tuple[Manifest, Fidelity]:
    calibration = Calibration(text, 6.0, tuner=tuner)
    choices = QuantizeOptions(calibration, force_quality=True)
    manifest, cost = quantize_bundle(bundle, folder, CALIBRATED, choices, **options)
    assert isinstance(cost, Fidelity)
    return manifest, cost


def tensors(bundle: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t, str(bundle)) for t in onnx.load(bundle / "model.onnx").graph.initializer}


def test_tuning_brings_a_model_closer_to_float32_and_leaves_codes_alone(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path
) -> None:
    _, before = made(tiny_bundle, tmp_path / "gptq", calibration_text, None)
    manifest, after = made(tiny_bundle, tmp_path / "tuned", calibration_text, scales.tune)
    assert after.divergence < 0.9 * before.divergence
    assert manifest.quantization is not None
    told = manifest.quantization["calibration"]["tuning"]
    assert told["divergence"] < told["divergence_before"]
    plain, tuned = tensors(tmp_path / "gptq"), tensors(tmp_path / "tuned")
    assert plain.keys() == tuned.keys()
    changed = {name for name in plain if not np.array_equal(plain[name], tuned[name])}
    assert all(name.endswith(".scales") or "norm" in name for name in changed)
    assert {name for name in plain if name.endswith(".scales") and "layers" in name} <= changed


def test_an_interrupted_tuning_does_not_round_again(tiny_bundle: Path, calibration_text: Path, tmp_path: Path) -> None:
    def interrupting(completed: int, total: int, stage: str) -> None:
        seen.append(stage)
        if stage == scales.STAGE and completed == 2:
            raise KeyboardInterrupt

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        made(tiny_bundle, tmp_path / "b", calibration_text, scales.tune, report=interrupting)
    assert list(tmp_path.iterdir()) == []
    seen.clear()
    made(
        tiny_bundle,
        tmp_path / "b",
        calibration_text,
        scales.tune,
        report=lambda completed, total, stage: seen.append(stage),
    )
    assert not any("layer" in stage for stage in seen)
    assert scales.STAGE in seen
    assert not list((cache_folder() / "quantization").glob("*.npz"))


def test_a_model_that_takes_too_long_is_left_as_it_is(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scales, "LONGEST", 0.0)
    seen: list[str] = []
    manifest, _ = made(
        tiny_bundle,
        tmp_path / "b",
        calibration_text,
        scales.tune,
        report=lambda completed, total, stage: seen.append(stage),
    )
    assert any("scales are not tuned, which would take some" in stage for stage in seen)
    assert manifest.quantization is not None
    assert "tuning" not in manifest.quantization["calibration"]


def test_half_of_the_text_that_is_written_goes_on_from_documents_and_half_is_chat(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    turns = (Turn(frozenset({0}), (1,), (1.0,)), Turn(frozenset({0}), (2,), (1.0,)))
    script = Script(tuple(Opening((number,), 0) for number in range(1000)), turns, None, tokenizer)
    documents = ["the cat sat on the mat, the dog sat on the log", "a hen ran to the pen, and the cat sat on it"]
    rows = [tokenizer.encode(" ".join([document] * 9)).ids[:64] for document in documents]
    openings = scales._openings(script, np.array(rows, np.uint32))
    assert len(openings) == scales.OWN_WINDOWS
    assert [opening.ids for opening in openings[::2]] == [
        (1000 * place // len(openings[::2]),) for place in range(len(openings[::2]))
    ]
    assert {opening.turn for opening in openings[::2]} == {0}
    begun = [tokenizer.decode(list(opening.ids)) for opening in openings[1::2]]
    half = len(begun) // 2
    for some, document in zip((begun[:half], begun[half:]), documents, strict=True):
        assert len(set(some)) == 1
        assert document.startswith(some[0])
    assert {opening.turn for opening in openings[1::2]} == {1}  # the base's own, not the user's


def test_the_command_line_tunes_where_torch_is_installed_and_rounding_is_calibrated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "is_installed", is_installed)  # the tests' own default is off

    def tuner(tune: bool | None, method: str) -> Tuner | None:
        choices = QuantizationChoices(
            method=method, bits_per_weight=None, calibration_text=None, tune=tune, activations="fp32", text=None,
            threads=None, force_quality=False, kv=None,
        )  # fmt: skip
        return choices.calibration(Quantization(method=method)).tuner

    assert tuner(None, "calibrated") is scales.tune
    assert tuner(False, "calibrated") is None
    assert tuner(None, "mse") is None
    monkeypatch.setattr(quantization, "is_installed", lambda _extra: False)
    assert tuner(None, "calibrated") is None


def test_what_a_stage_has_freed_is_given_back_before_the_next_one(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def recording(module: ModuleType) -> Callable[[], None]:
        name = f"{module.__name__} gives back"
        return lambda: (seen.append(name), give_back())[1]

    exporter, tuner = (f"{module.__name__} gives back" for module in (calibrate, scales))
    for module in (calibrate, scales):
        monkeypatch.setattr(module, "give_back", recording(module))
    made(
        tiny_bundle,
        tmp_path / "b",
        calibration_text,
        scales.tune,
        report=lambda completed, total, stage: seen.append(stage),
    )
    stages = [stage for stage, _ in itertools.groupby(seen)]
    judged = next(place for place, stage in enumerate(stages) if stage.endswith("judging"))
    reads = stages.index("the model reads text to tune scales with")
    assert stages[judged + 1 : reads] == [exporter, tuner]
    assert stages[reads + 1 :][:3] == [tuner, scales.STAGE, exporter]


def test_windows_held_at_once_change_what_is_learnt_by_rounding_alone(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tiny_bundle, tmp_path / "one", calibration_text, scales.tune)
    monkeypatch.setattr(scales, "AT_ONCE", scales.BATCH)
    made(tiny_bundle, tmp_path / "all", calibration_text, scales.tune)
    one, together = tensors(tmp_path / "one"), tensors(tmp_path / "all")
    learnt = [name for name in one if name.endswith(".scales") and "layers" in name]
    for name in learnt:
        np.testing.assert_allclose(one[name], together[name], rtol=0.02)

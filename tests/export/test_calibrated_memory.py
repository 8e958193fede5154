"""What a calibration and its comparison with float32 hold at once, counted in bytes of arrays, not in pages."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.evaluation.scoring import Scorer
from recycle_onnx.export import Calibration, ExportOptions, Quantization, export, heavy, lazy, quantize_bundle
from recycle_onnx.export.by_layers import scores
from recycle_onnx.export.calibrated import sweep
from recycle_onnx.export.calibrated.gptq import Inputs, quantize_by_moments
from recycle_onnx.export.calibrated.segments import Floats, Segment, State
from recycle_onnx.export.fidelity import Fidelity
from recycle_onnx.export.quantizer import QuantizeOptions
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.sessions import open_mapped
from tests.helpers import heads, tiny
from tests.helpers.command import run

CALIBRATED = Quantization(method="calibrated")


def peak(action: Callable[[], object]) -> int:
    """Bytes that numpy allocates at once meanwhile."""
    tracemalloc.start()
    action()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_gptq_holds_two_matrices_in_float64_and_no_third() -> None:
    width = 1024
    inputs = np.random.default_rng(0).standard_normal((2 * width, width)).astype(np.float32)
    matrix, moments = inputs[:16], inputs.T @ inputs
    square = width * width
    most = peak(lambda: quantize_by_moments(matrix, Inputs.of(moments), Quantization(keep=())))
    assert 16 * square < most < 22 * square  # moments, their factor, and half of one for its inverse


def quantized(bundle: Path, out: Path, calibration_text: Path) -> Manifest:
    options = QuantizeOptions(calibration=Calibration(calibration_text), compare=False, force_quality=True)
    return quantize_bundle(bundle, out, CALIBRATED, options)[0]


def test_the_windows_of_a_calibration_are_held_once(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays: list[weakref.ref[NDArray[Any]]] = []
    held: list[int] = []
    carry = Segment.moments

    def counted(
        piece: Segment, state: State, matrices: Mapping[str, Floats], threads: int | None
    ) -> tuple[State, dict[str, Floats]]:
        new, moments = carry(piece, state, matrices, threads)
        arrays.extend(weakref.ref(array) for array in new.values())
        alive = [array for reference in arrays if (array := reference()) is not None]
        held.append(sum(array.nbytes for array in alive))
        return new, moments

    monkeypatch.setattr(sweep, "BATCH", 2)
    monkeypatch.setattr(Segment, "moments", counted)
    quantized(tiny_bundle, tmp_path / "b", calibration_text)
    layers = Bundle.open(tiny_bundle).manifest.graphs["full"].num_layers
    batches, left = divmod(len(held), layers + 1)
    assert left == 0
    assert batches > 4
    whole = held[batches - 1]  # all windows behind the first piece
    assert max(held) <= whole * (1 + 1 / batches) * 1.01


def test_an_interrupted_calibration_goes_on_in_the_midst_of_a_layer(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Segment] = []
    carry = Segment.moments

    def interrupted(piece: Segment, *rest: Any) -> tuple[State, dict[str, Floats]]:
        calls.append(piece)
        if len(calls) == 9:  # of six batches a piece, the third of the second piece
            raise KeyboardInterrupt
        return carry(piece, *rest)

    monkeypatch.setattr(sweep, "BATCH", 2)
    whole = quantized(tiny_bundle, tmp_path / "whole", calibration_text)
    monkeypatch.setattr(Segment, "moments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(tiny_bundle, tmp_path / "b", calibration_text)
    assert (
        quantized(tiny_bundle, tmp_path / "b", calibration_text).files["model.onnx.data"]
        == whole.files["model.onnx.data"]
    )
    batches = len(calls) - 1  # one of them twice
    assert batches == 6 * (whole.graphs["full"].num_layers + 1)


def test_what_pieces_return_keeps_no_more_than_itself(
    tiny_bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arena goes back whole, and so would stay with each array that lies in it."""
    opened: list[ort.InferenceSession] = []
    open_piece = Segment._open

    def recorded(piece: Segment, *rest: Any, **named: Any) -> ort.InferenceSession:
        opened.append(open_piece(piece, *rest, **named))
        return opened[-1]

    monkeypatch.setattr(Segment, "_open", recorded)
    quantized(tiny_bundle, tmp_path / "b", calibration_text)
    assert opened
    assert not any(session.get_session_options().enable_cpu_mem_arena for session in opened)


@pytest.fixture
def fusing_bundle(tmp_path: Path) -> Path:
    """A bundle whose module reads three hidden states, which the full model's graph fuses behind its last layer."""
    base, head = heads.write_base(tmp_path / "base"), heads.write_eagle3(tmp_path / "head")
    assert run("attach", base, tmp_path / "checkpoint", "--head", head, "--no-check").exit_code == 0
    export(tmp_path / "checkpoint", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("kind", ["sample_bundle", "standard_bundle", "fusing_bundle"])
def test_scores_by_layers_are_those_of_the_model(kind: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(kind))
    vocabulary = bundle.manifest.graphs["full"].vocab_size
    windows = np.random.default_rng(0).integers(3, vocabulary, (3, 40)).tolist()
    scorer = Scorer(Model(bundle, "cpu", 1, open_mapped))
    for ids, (score, logits) in zip(windows, scores(bundle, windows, 1), strict=True):
        expected = scorer.score(ids)
        np.testing.assert_allclose(logits, scorer.logits, atol=1e-3)
        np.testing.assert_allclose(score.nats, expected.nats, atol=1e-3)
        np.testing.assert_array_equal(score.best, expected.best)
        assert score.module is not None
        assert expected.module is not None
        np.testing.assert_allclose(score.module.nats, expected.module.nats, atol=1e-3)


def test_reading_by_layers_holds_a_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """19 MB of float32 in eight layers of 2.1 MB each, and 1 MB of vocabulary."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "head_dim": 64, "vocab_size": 1024}
    config = tiny.tiny_config(**sizes, num_layers=8)
    bundle = export(tiny.write_base(tmp_path / "base", config), tmp_path / "bundle").opened
    whole = 4 * sum(int(np.prod(shape)) for shape in config.tensor_shapes().values())
    windows = np.random.default_rng(0).integers(3, 1024, (2, 16)).tolist()
    monkeypatch.setattr(lazy, "VALUES_AT_ONCE", 1 << 14)
    assert peak(lambda: list(scores(bundle, windows, 1))) < whole / 3


def test_a_heavy_model_is_compared_by_layers_and_what_is_made_of_it_is_checked(
    tiny_checkpoint: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    options = ExportOptions(quantization=CALIBRATED, calibration=Calibration(calibration_text))
    light = export(tiny_checkpoint, tmp_path / "light", options)
    monkeypatch.setattr(heavy, "HEAVY", 0)
    # Whoever maps the float32 graph holds all of it as soon as it has run once.
    monkeypatch.setattr("recycle_onnx.export.fidelity.open_mapped", only_quantized)
    monkeypatch.setattr("recycle_onnx.export.self_check.open_mapped", only_quantized)
    by_layers = export(
        tiny_checkpoint, tmp_path / "heavy", options, report=lambda completed, total, stage: stages.append(stage)
    )
    assert stages.count("checking the graphs") == 1
    assert by_layers.self_check is not None
    assert isinstance(light.fidelity, Fidelity)
    assert isinstance(by_layers.fidelity, Fidelity)
    for name in ("perplexity_fp32", "perplexity", "divergence", "acceptance_fp32"):
        assert getattr(by_layers.fidelity, name) == pytest.approx(getattr(light.fidelity, name), rel=1e-3)


def only_quantized(bundle: Bundle, *rest: Any) -> ort.InferenceSession:
    assert bundle.manifest.precision != "fp32"
    return open_mapped(bundle, *rest)

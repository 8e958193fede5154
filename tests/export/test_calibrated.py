"""int4 made with what the model reads: closer to float32 than rounding, within a budget, and exact in all run sizes."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.cache import cache_folder
from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, LOGITS
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.evaluation.scoring import score
from recycle_onnx.export import Calibration, Quantization, QuantizeOptions, heavy, quantize_bundle
from recycle_onnx.export.block_quantizer import dequantize, quantize
from recycle_onnx.export.calibrated import own_text, texts
from recycle_onnx.export.calibrated.choice import RowGroup, bits_of, check_budget, choose
from recycle_onnx.export.calibrated.gptq import Inputs, inverse_factor, quantize_by_moments
from recycle_onnx.export.calibrated.segments import cut
from recycle_onnx.export.calibrated.unfinished import Unfinished
from recycle_onnx.export.fidelity import Fidelity, check_quality, warning
from recycle_onnx.export.lazy import load_lazily
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.sessions import open_session
from recycle_onnx.script import Opening, Script
from recycle_onnx.tokenizer import load_tokenizer
from tests.helpers.command import assert_refused, names, run

CALIBRATED = Quantization(method="calibrated")


@pytest.fixture(scope="module")
def calibrated(sample_bundle: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "int4"
    quantize_bundle(sample_bundle, folder, CALIBRATED, QuantizeOptions(calibration=Calibration(calibration_text, 5.4)))
    return folder


def quantization(bundle: Path) -> dict[str, object]:
    found = Manifest.read(bundle / "recycle.json").quantization
    assert found is not None
    return found


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [32, 64])
def test_products_err_less_than_those_of_rounded_matrices(size: int, symmetric: bool) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_t(4, (48, 128)).astype(np.float32)
    inputs = (random.standard_normal((600, 16)) @ random.standard_normal((16, 128))).astype(np.float32)
    inputs[:, 5] += 20  # one that hardly changes, as real models have
    how = Quantization(block_size=size, symmetric=symmetric, keep=())

    def error(blocks: object) -> float:
        return float(np.square(inputs @ (dequantize(blocks, how) - matrix).T).mean())  # type: ignore[arg-type]

    moments = inputs.T @ inputs / len(inputs)
    assert error(quantize_by_moments(matrix, Inputs.of(moments), how)) < 0.35 * error(quantize(matrix, how))


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 300])
def test_the_factor_of_inverse_moments_is_numpys(size: int) -> None:
    inputs = np.random.default_rng(0).standard_normal((2 * size + 2, size))
    moments = inputs.T @ inputs / size
    factor, inverse = inverse_factor(moments.copy()).astype(np.float64), np.linalg.inv(moments)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor, inverse, atol=1e-6 * np.abs(inverse).max())


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    matrix = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    moments = np.diag(np.r_[np.ones(40), np.zeros(24)]).astype(np.float32)
    how = Quantization(keep=())
    for found, read in ((moments, 40), (np.zeros_like(moments), 64)):
        error = np.abs(dequantize(quantize_by_moments(matrix, Inputs.of(found), how), how) - matrix)
        assert error[:, :read].max() < 0.5
        assert np.isfinite(error).all()


@pytest.mark.parametrize("flavour", ["sample_bundle", "standard_bundle"])
def test_the_pieces_of_a_graph_compute_what_the_graph_does(flavour: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(flavour))
    spec, ids = bundle.manifest.graphs["full"], np.array([[5, 7, 11, 13, 17, 19]])
    empty = np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32)
    state = {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), **dict.fromkeys(spec.past_names(), empty)}
    segments = cut(load_lazily(bundle.graph("full"), {}))
    assert len(segments) == spec.num_layers + 2
    for segment in segments:
        state = segment.behind(state, segment.run(state, segment.load(), 1))
    expected = recycle_onnx.load(bundle.folder).decoder("full").full_step(ids[0].tolist(), keep=6)
    np.testing.assert_allclose(state[LOGITS][0], expected, atol=1e-3)


def test_eight_bits_go_where_four_do_most_damage_for_their_bytes() -> None:
    damages = {"small and bad": (100, 0.1), "large and bad": (1000, 0.3), "large and good": (1000, 0.01)}
    parts = [RowGroup(name, (0, 1), values, damage) for name, (values, damage) in damages.items()]
    four, eight = [5.0] * 3, [8.5] * 3

    def chosen(budget: float) -> list[str]:
        flags = choose(parts, four, eight, budget)
        return [part.weight for part, is_eight in zip(parts, flags, strict=True) if is_eight]

    assert chosen(5.0) == []
    assert chosen(5.2) == ["small and bad"]
    assert chosen(7.0) == ["small and bad", "large and bad"]
    assert len(chosen(8.5)) == 3


def test_a_budget_below_four_bits_throughout_is_refused() -> None:
    assert bits_of(Quantization()) == 5.125
    assert bits_of(Quantization(bits=8, symmetric=True)) == 8.5
    with pytest.raises(InputError, match=r"--bits-per-weight is 5; .* take 5\.125: give more"):
        check_budget(5.0, 5.125)


def test_the_bundle_keeps_its_budget_and_says_what_it_did(calibrated: Path) -> None:
    told = quantization(calibrated)
    made = told["calibration"]
    assert isinstance(made, dict)
    assert told["method"] == "calibrated"
    assert 5.125 < made["bits_per_weight"] <= 5.4
    assert 0 < len(made["eight_bits"]) < made["matrices"]
    assert "calibrated on" in run("inspect", calibrated).stdout


def test_a_matrix_may_have_rows_of_four_bits_and_of_eight(calibrated: Path) -> None:
    onnx.checker.check_model(calibrated / "model.onnx")
    graph = onnx.load(calibrated / "model.onnx", load_external_data=False).graph
    bits = [{a.name: a.i for a in node.attribute}["bits"] for node in graph.node if node.op_type == "MatMulNBits"]
    assert {4, 8} == set(bits[:-1])  # (the last one is the head)


def test_it_departs_less_from_float32_than_rounding(calibrated: Path, int4_bundle: Path) -> None:
    cost, rounded = (quantization(bundle)["fidelity"] for bundle in (calibrated, int4_bundle))
    assert isinstance(cost, dict)
    assert isinstance(rounded, dict)
    assert cost["divergence"] < 0.8 * rounded["divergence"]


def test_runs_of_all_sizes_agree_to_the_bit(calibrated: Path) -> None:
    assert recycle_onnx.load(calibrated).equal_runs


def test_an_interrupted_calibration_goes_on_where_it_was(
    calibrated: Path, sample_bundle: Path, calibration_text: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def interrupting(completed: int, total: int, stage: str) -> None:
        seen.append(stage)
        if "layer 3 of" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(
            sample_bundle,
            tmp_path / "b",
            CALIBRATED,
            QuantizeOptions(calibration=Calibration(calibration_text, 5.4)),
            report=interrupting,
        )
    assert names(tmp_path) == []
    kept = list((cache_folder() / "quantization").glob("*.npz"))
    assert len(kept) == 1
    seen.clear()
    again, _ = quantize_bundle(
        sample_bundle,
        tmp_path / "b",
        CALIBRATED,
        QuantizeOptions(calibration=Calibration(calibration_text, 5.4)),
        report=lambda completed, total, stage: seen.append(stage),
    )
    assert not any("layer 2 of" in stage for stage in seen)
    assert any("layer 3 of" in stage for stage in seen)
    assert again.files["model.onnx.data"] == Manifest.read(calibrated / "recycle.json").files["model.onnx.data"]
    assert not kept[0].exists()


@pytest.mark.parametrize("damage", [b"", b"PK", b"PK\x03\x04 and no archive"])
def test_a_damaged_record_of_an_interrupted_calibration_is_as_none(damage: bytes) -> None:
    kept = cache_folder() / "quantization" / "key.npz"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(damage)
    assert Unfinished("key").load() is None


def test_by_default_it_reads_several_kinds_of_text_and_what_it_writes_itself(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    ids = texts.windows(bundle, None, 48, 12, 1, lambda *_: None)
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))  # one that keeps no text yet
    again = texts.windows(bundle, None, 48, 12, 1, lambda *_: None)
    assert ids.shape[0] >= 12
    assert ids.shape[1] == bundle.manifest.context_length
    assert ids.max() < bundle.manifest.graphs["full"].vocab_size
    np.testing.assert_array_equal(ids, again)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that were opened to write text with."""
    paths: list[Path] = []

    def opening(path: Path, *rest: Any) -> ort.InferenceSession:
        paths.append(path)
        return open_session(path, *rest)

    monkeypatch.setattr(own_text, "open_session", opening)
    return paths


def written(bundle: Bundle, *texts: str) -> NDArray[np.int64]:
    tokenizer, turns = load_tokenizer(bundle.folder), Script.of(bundle.folder, 1.0).turns
    openings = [Opening(tuple(tokenizer.encode(text, add_special_tokens=False).ids), 0) for text in texts]
    return own_text.write(bundle, openings, turns, 64, 1, lambda *_: None)


def test_a_copy_in_int8_writes_for_a_heavy_model(
    sample_bundle: Path, sample_model: Model, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(sample_bundle)

    def nats() -> float:
        ids = written(bundle, "Once upon a time", "The cat", "One day")
        return float(np.mean([score(sample_model, list(map(int, row))).nats.mean() for row in ids]))

    float32 = nats()
    monkeypatch.setattr(heavy, "HEAVY", 0)
    assert abs(nats() - float32) < 0.3
    own, copy = opened
    assert own == bundle.graph("full")
    assert copy != own
    assert not copy.parent.exists()


def test_written_text_is_kept_until_another_is(sample_bundle: Path, opened: list[Path]) -> None:
    bundle = Bundle.open(sample_bundle)
    first = written(bundle, "The dog")
    assert np.array_equal(written(bundle, "The dog"), first)
    assert len(opened) == 1
    (kept,) = (cache_folder() / "quantization").glob("text-*.npy")
    kept.write_bytes(kept.read_bytes()[:40])
    assert np.array_equal(written(bundle, "The dog"), first)
    assert not np.array_equal(written(bundle, "The cow"), first)
    assert len(opened) == 3
    assert len([*kept.parent.glob("text-*.npy")]) == 1


@pytest.mark.parametrize("full_disk", [False, True])
def test_a_cache_that_cannot_be_written_is_no_error(
    full_disk: bool, sample_bundle: Path, opened: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path if full_disk else tmp_path / "file" / "below"))
    monkeypatch.setattr(heavy, "HEAVY", 0)
    if full_disk:
        monkeypatch.setattr(own_text, "temporary_folder", full)
    assert written(Bundle.open(sample_bundle), "The dog").shape == (1, 64)
    assert opened == [sample_bundle / "model.onnx"]


def test_prompts_are_answered_by_the_model_to_calibrate_with(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"the cat number {number}"}) for number in range(3)))
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(InputError, match="no chat template"):
        texts.windows(bundle, path, 48, 12, 1, lambda *_: None)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", (), ("no text", "expected UTF-8 text")),
        (b"the cat", (), ("tokens", "expected at least 96", "48 columns")),
        (b"\xff\xfe\x00cat", (), ("not UTF-8 text",)),
        (None, (), ("no such text file",)),
        (b"the cat sat. " * 400, ("--bits-per-weight", 4.5), ("--bits-per-weight is 4.5", "give more")),
        (b"the cat sat. " * 400, ("--method", "mse"), ("--calibration", "--method calibrated")),
        (b"the cat sat. " * 400, ("--bits", 8), ("--calibration", "--bits 4")),
        (b"the cat sat. " * 400, ("--threads", 0), ("threads is 0",)),
        (b"the cat sat. " * 400, ("--method", "mse", "--tune"), ("--tune goes with calibrated int4",)),
    ],
)
def test_what_cannot_be_calibrated_with_is_refused(
    content: bytes | None, options: tuple[object, ...], words: tuple[str, ...], tiny_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert_refused(run("quantize", tiny_bundle, tmp_path / "b", "--calibration", path, *options), 2, *words)
    assert not (tmp_path / "b").exists()


def test_large_models_are_rounded_unless_calibration_is_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    told: list[str] = []
    manifest, _ = quantize_bundle(
        tiny_bundle,
        tmp_path / "b",
        CALIBRATED,
        QuantizeOptions(calibration=Calibration(largest=1000)),
        report=lambda completed, total, stage: told.append(stage),
    )
    assert manifest.quantization is not None
    assert manifest.quantization["method"] == "mse"
    assert any("without calibration" in stage for stage in told)


def cost_of(change: float) -> Fidelity:
    return Fidelity("t", 0.0, True, 1000, 20.0, 20.0 * (1 + change), 0.1, 0.9, None, None)


def test_a_bundle_that_lost_much_is_warned_of_and_one_that_lost_more_is_refused() -> None:
    assert warning("int4", cost_of(0.04), "mse") is None
    check_quality("int4", cost_of(0.2), "mse")
    assert "--method calibrated" in str(warning("int4", cost_of(0.2), "mse"))
    assert "--bits-per-weight" in str(warning("int4", cost_of(0.2), "calibrated"))
    with pytest.raises(RecycleError, match=r"\+39%.*--method calibrated.*--force-quality"):
        check_quality("int4", cost_of(0.39), "rtn")
    check_quality("int4", replace(cost_of(0.39), perplexity=20.0), "rtn")


@pytest.mark.parametrize("verb", ["quantize", "export"])
def test_tuning_without_torch_is_refused_in_a_line(
    verb: str, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "recycle_onnx.training.scales", raising=False)
    source = {"quantize": [tiny_bundle], "export": [tiny_checkpoint, "--precision", "int4"]}[verb]
    result = run(verb, *source, tmp_path / "b", "--tune")
    assert_refused(result, 2, "--tune needs torch", "recycle-onnx[train]")
    assert not (tmp_path / "b").exists()

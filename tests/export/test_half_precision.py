"""float16 bundles: half the size, the same text but for rounding, and float32 logits; and float16 around integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export import HalfPrecision, Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.runtime.model import Model
from tests.conftest import SAMPLE
from tests.helpers import tiny
from tests.helpers.command import run
from tests.helpers.prompts import story_prompts

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def halved(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halved") / "bundle"
    quantize_bundle(sample_bundle, folder, HalfPrecision())
    return folder


def test_the_bundle_is_whole_and_half_the_size(halved: Path, sample_bundle: Path) -> None:
    manifest = Bundle.open(halved, verify=True).manifest
    assert manifest.precision == "fp16"
    assert {spec.float_type for spec in manifest.graphs.values()} == {"float16"}
    sizes = [sum(path.stat().st_size for path in folder.glob("*.data")) for folder in (halved, sample_bundle)]
    assert 0.49 < sizes[0] / sizes[1] < 0.55


@pytest.mark.parametrize("kind", ["full", "recycler"])
def test_the_graphs_pass_the_checker_and_only_logits_are_float32(kind: str, halved: Path) -> None:
    onnx.checker.check_model(halved / graph_file(kind), full_check=True)
    graph = onnx.load(halved / graph_file(kind), load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert {name for name, kind in types.items() if kind == FLOAT} == {"logits"}
    assert {name for name, kind in types.items() if kind == HALF} >= {"hidden_states", "present.0.key"}
    assert FLOAT not in {tensor.data_type for tensor in graph.initializer}


def test_the_cost_is_measured_and_tiny(halved: Path) -> None:
    recorded = Manifest.read(halved / "recycle.json").quantization
    assert recorded is not None
    cost = recorded["fidelity"]
    assert abs(cost["perplexity"] / cost["perplexity_fp32"] - 1) < 1e-3
    assert cost["top1_agreement"] > 0.99
    assert cost["acceptance"] == pytest.approx(cost["acceptance_fp32"], abs=0.01)


def test_logits_are_those_of_float32_but_for_rounding(halved: Path, sample_model: Model) -> None:
    model = recycle_onnx.load(halved, threads=1)
    for prompt in story_prompts(5):
        expected, found = (m.decoder("full").prefill(m.encode(prompt)) for m in (sample_model, model))
        assert 0 < np.abs(expected - found).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("strategy", ["verify", "alternate", "lookup", "auto"])
def test_every_strategy_runs_and_says_how_exact_it_is(strategy: str, halved: Path) -> None:
    result = recycle_onnx.load(halved, threads=1).generate(story_prompts(1)[0], strategy=strategy, max_new_tokens=40)
    assert len(result.tokens) > 10
    assert result.lossless == ("no" if strategy == "alternate" else "within_rounding")


def test_a_conversation_in_float16_is_saved_and_goes_on(halved: Path, tmp_path: Path) -> None:
    model = recycle_onnx.load(halved, threads=1)
    chat = model.conversation()
    for _ in chat.send("Tell me of a fox.", max_new_tokens=24):
        pass
    chat.save(tmp_path / "chat.safetensors")
    answers = [
        each.send("And then?", strategy="full", max_new_tokens=24)
        for each in (chat, model.load_conversation(tmp_path / "chat.safetensors"))
    ]
    goes_on, loaded = ([token.id for token in answer] for answer in answers)
    assert goes_on == loaded
    assert answers[1].result.stats.reused_tokens > 20


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    weights = tiny.write_base(tmp_path / "base", tiny.tiny_config()) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] *= 1e5
    save_file(tensors, weights, metadata={"format": "pt"})
    export(tmp_path / "base", tmp_path / "bundle")
    with pytest.raises(InputError, match=r"model\.norm\.weight .* use fp32, or int8"):
        quantize_bundle(tmp_path / "bundle", tmp_path / "half", HalfPrecision())
    assert not (tmp_path / "half").exists()


@pytest.fixture(scope="module", params=["int4", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def quantized(sample_bundle: Path, out: Path, precision: str, activations: str) -> Path:
    how = Quantization(int(precision.removeprefix("int")), method="rtn", activations=activations)
    quantize_bundle(
        sample_bundle, out, how, QuantizeOptions(compare=activations == "fp16")
    )  # the other one's cost is nobody's concern
    return out


@pytest.fixture(scope="module")
def small(sample_bundle: Path, precision: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(sample_bundle, tmp_path_factory.mktemp("small") / "bundle", precision, "fp32")


@pytest.fixture(scope="module")
def small_halved(sample_bundle: Path, precision: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(sample_bundle, tmp_path_factory.mktemp("small_halved") / "bundle", precision, "fp16")


def tensors_of(bundle: Path, kind: str) -> dict[str, onnx.TensorProto]:
    """Without the lengths of the second row in attention, which graphs for GPUs lack."""
    tensors = onnx.load(bundle / graph_file(kind)).graph.initializer
    return {tensor.name: tensor for tensor in tensors if not tensor.name.startswith("second_row.")}


@pytest.mark.parametrize("kind", ["full", "recycler"])
def test_a_quantized_graph_has_the_same_integers_and_float16_around_them(
    kind: str, precision: str, small: Path, small_halved: Path
) -> None:
    manifest = Bundle.open(small_halved, verify=True).manifest
    assert (manifest.precision, manifest.graphs[kind].float_type) == (precision, "float16")
    onnx.checker.check_model(small_halved / graph_file(kind), full_check=True)
    graph = onnx.load(small_halved / graph_file(kind), load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert {name for name, kind in types.items() if kind == FLOAT} == {"logits"}
    assert {name for name, kind in types.items() if kind == HALF} >= {"hidden_states", "past_key_values.0.key"}
    plain, halved = tensors_of(small, kind), tensors_of(small_halved, kind)
    assert plain.keys() == halved.keys()
    assert FLOAT not in {tensor.data_type for tensor in halved.values()}
    assert {tensor.data_type for name, tensor in halved.items() if name.endswith(".scales")} == {HALF}
    integers = [name for name, tensor in plain.items() if tensor.data_type == onnx.TensorProto.UINT8]
    assert len(integers) > 5
    assert all(plain[name].raw_data == halved[name].raw_data for name in integers)


def test_a_quantized_bundles_text_is_that_of_float32_activations_but_for_rounding(
    small: Path, small_halved: Path
) -> None:
    plain, halved = recycle_onnx.load(small), recycle_onnx.load(small_halved)
    for prompt in story_prompts(3):
        expected, found = (model.decoder("full").prefill(model.encode(prompt)) for model in (plain, halved))
        assert 0 < np.abs(expected - found).max() < 0.05 * np.abs(expected).max()
    for strategy in ("verify", "alternate", "lookup", "auto"):
        result = halved.generate(story_prompts(1)[0], strategy=strategy, max_new_tokens=20)
        assert len(result.tokens) > 10
        assert result.lossless == ("no" if strategy == "alternate" else "within_rounding")


def test_a_scale_beyond_float16_is_refused(tmp_path: Path) -> None:
    weights = tiny.write_base(tmp_path / "base", tiny.tiny_config()) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e8
    save_file(tensors, weights, metadata={"format": "pt"})
    export(tmp_path / "base", tmp_path / "bundle")
    quantize_bundle(tmp_path / "bundle", tmp_path / "plain", Quantization(8), QuantizeOptions(compare=False))
    with pytest.raises(InputError, match=r"scale of .*up_proj.*activations in fp32"):
        quantize_bundle(
            tmp_path / "bundle", tmp_path / "half", Quantization(8, activations="fp16"), QuantizeOptions(compare=False)
        )
    assert not (tmp_path / "half").exists()


def test_activations_on_the_command_line(sample_bundle: Path, tmp_path: Path) -> None:
    result = run("quantize", sample_bundle, tmp_path / "a", "--method", "rtn", "--activations", "fp16", "--no-compare")
    assert result.exit_code == 0, result.stderr
    assert Manifest.read(tmp_path / "a" / "recycle.json").graphs["full"].float_type == "float16"
    refused = run("quantize", sample_bundle, tmp_path / "b", "--activations", "bf16")
    assert refused.exit_code == 2
    assert "bf16; expected one of: fp32, fp16" in refused.stderr
    refused = run("export", SAMPLE, tmp_path / "b", "--precision", "fp16", "--activations", "fp16")
    assert refused.exit_code == 2
    assert "--activations fp16 goes with --precision int8 or int4" in refused.stderr
    assert not (tmp_path / "b").exists()


def test_export_says_that_a_cpu_gains_nothing(tmp_path: Path) -> None:
    result = run("export", SAMPLE, tmp_path / "bundle", "--precision", "fp16")
    assert result.exit_code == 0, result.stderr
    assert "CPU" in result.stdout

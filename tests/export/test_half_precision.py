"""float16 bundles: half the size, the same text but for rounding, and float32 logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export import HalfPrecision, export, quantize_bundle
from recycle_onnx.runtime.model import RecycleModel
from tests import tiny
from tests.cli.command import run
from tests.conftest import SAMPLE
from tests.prompts import story_prompts

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


def test_logits_are_those_of_float32_but_for_rounding(halved: Path, sample_model: RecycleModel) -> None:
    model = recycle_onnx.load(halved)
    for prompt in story_prompts(5):
        expected, found = (m.decoder("full").prefill(m.encode(prompt)) for m in (sample_model, model))
        assert 0 < np.abs(expected - found).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("strategy", ["verify", "alternate", "lookup", "auto"])
def test_every_strategy_runs_and_says_how_exact_it_is(strategy: str, halved: Path) -> None:
    result = recycle_onnx.load(halved).generate(story_prompts(1)[0], strategy=strategy, max_new_tokens=40)
    assert len(result.tokens) > 10
    assert result.lossless == ("no" if strategy == "alternate" else "within_rounding")


def test_a_conversation_in_float16_is_saved_and_goes_on(halved: Path, tmp_path: Path) -> None:
    model = recycle_onnx.load(halved)
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
    with pytest.raises(InputError, match=r"model\.norm\.weight .* use fp32 or int8"):
        quantize_bundle(tmp_path / "bundle", tmp_path / "half", HalfPrecision())
    assert not (tmp_path / "half").exists()


def test_export_says_that_a_cpu_gains_nothing(tmp_path: Path) -> None:
    result = run("export", SAMPLE, tmp_path / "bundle", "--precision", "fp16")
    assert result.exit_code == 0, result.stderr
    assert "CPU" in result.stdout

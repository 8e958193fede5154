"""Quantized bundles: smaller, close to float32, and honest about how close."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export import ExportOptions, Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.files import sha256
from recycle_onnx.runtime.decoding import strategies
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from tests.conftest import SAMPLE
from tests.helpers import tiny
from tests.helpers.campaigns import LONG
from tests.helpers.prompts import story_prompts

LIMITS = {4: (0.03, 0.02), 8: (0.003, 0.02)}
"""By bits: how much perplexity may rise, and acceptance change."""


@pytest.fixture(scope="module", params=[4, 8])
def quantized(request: pytest.FixtureRequest) -> Path:
    bundle: Path = request.getfixturevalue(f"int{request.param}_bundle")
    return bundle


@pytest.fixture(scope="module")
def model(quantized: Path) -> Model:
    return recycle_onnx.load(quantized, threads=1)


@pytest.fixture(scope="module")
def rounding_model(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Blocks whose kernel rounds one row otherwise than several."""
    folder = tmp_path_factory.mktemp("rounding") / "int4"
    quantize_bundle(sample_bundle, folder, Quantization(bits=4, block_size=64))
    return recycle_onnx.load(folder, threads=1)


def test_the_cost_is_measured_and_small(quantized: Path) -> None:
    recorded = Manifest.read(quantized / "recycle.json").quantization
    assert recorded is not None
    cost = recorded["fidelity"]
    perplexity, acceptance = LIMITS[recorded["bits"]]
    assert 0 < abs(cost["perplexity"] / cost["perplexity_fp32"] - 1) <= perplexity
    assert abs(cost["acceptance"] - cost["acceptance_fp32"]) <= acceptance
    assert 0.9 < cost["top1_agreement"] < 1
    assert 0 <= cost["epsilon"] < 1
    assert cost["equal_runs"] == (cost["epsilon"] == 0)


def test_the_bundle_is_whole_and_smaller(quantized: Path, sample_bundle: Path) -> None:
    bundle = Bundle.open(quantized, verify=True)
    bits = 4 if "int4" in quantized.name else 8
    sizes = [sum(path.stat().st_size for path in folder.glob("*.data")) for folder in (quantized, sample_bundle)]
    assert sizes[0] < sizes[1] * (bits + 3) / 32
    assert bundle.manifest.precision == f"int{bits}"
    assert bundle.manifest.graphs == Manifest.read(sample_bundle / "recycle.json").graphs


def test_the_graphs_keep_their_interface_and_no_large_float_weight(quantized: Path, sample_bundle: Path) -> None:
    for kind in ("full", "recycler"):
        onnx.checker.check_model(quantized / graph_file(kind))
        graph, plain = (
            onnx.load(f / graph_file(kind), load_external_data=False).graph for f in (quantized, sample_bundle)
        )
        for part in ("input", "output"):
            assert list(getattr(graph, part)) == list(getattr(plain, part))
        operators = [node.op_type for node in graph.node]
        assert "GatherBlockQuantized" in operators
        assert operators.count("MatMul") <= 1  # the projection, at eight bits
        assert {"FusedMatMul", "Gather"}.isdisjoint(operators)
        for node in graph.node:
            if node.op_type == "MatMulNBits":
                assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 4


def test_the_module_reads_embedding_and_head_from_the_full_models_file(quantized: Path) -> None:
    graph = onnx.load(quantized / "recycler.onnx", load_external_data=False).graph
    places = {
        tensor.name: entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert {place for name, place in places.items() if "embed_tokens" in name} == {"model.onnx.data"}
    assert {place for name, place in places.items() if name.startswith("layers.0.mlp")} == {"recycler.onnx.data"}


def test_the_projection_keeps_eight_bits_or_float32(quantized: Path) -> None:
    graph = onnx.load(quantized / "recycler.onnx", load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    assert ("projection.weight.q8" if "int4" in quantized.name else "projection.weight") in names


def gaps(model: Model, prompt: list[int], tokens: list[int]) -> list[float]:
    """How far each token lies below the best one, when runs on one token score the text."""
    decoder = model.decoder("full")
    row: NDArray[np.float32] = decoder.prefill(prompt)[-1]
    found = []
    for token in tokens:
        found.append(float(row.max() - row[token]))
        row = decoder.full_step([token], keep=1)[-1]
    return found


def epsilon(model: Model) -> float:
    quantization = model.bundle.manifest.quantization
    assert quantization is not None
    return float(quantization["fidelity"]["epsilon"])


def assert_within_epsilon(model: Model, prompts: list[str]) -> None:
    for prompt in prompts:
        result = model.generate(prompt, max_new_tokens=24, strategy="verify")
        assert result.lossless == ("exact" if model.equal_runs else "within_rounding")
        assert max(gaps(model, model.encode(prompt), result.tokens)) <= epsilon(model), prompt


def test_verify_is_within_epsilon_of_full(model: Model) -> None:
    """(Which is 0 where runs are equal: then every token is the best one.)"""
    assert_within_epsilon(model, story_prompts(200)[:: 1 if LONG else 5])


def test_verify_is_within_epsilon_of_full_where_runs_round_otherwise(rounding_model: Model) -> None:
    assert_within_epsilon(rounding_model, story_prompts(100)[:: 1 if LONG else 2])


@pytest.mark.parametrize("strategy", ["full", "verify", "auto"])
def test_every_turn_of_a_conversation_is_within_epsilon(model: Model, strategy: str, tmp_path: Path) -> None:
    chat = model.conversation(system="You tell stories.")
    for turn in ("Tell me of a fox.", "And then?", "Who came?"):
        answer = chat.send(turn, strategy=strategy, max_new_tokens=24)
        assert max(gaps(model, answer.prompt, [token.id for token in answer])) <= epsilon(model)
    chat.save(tmp_path / "chat.safetensors")
    goes_on, loaded = (
        [token.id for token in each.send("The end?", strategy="full", max_new_tokens=24)]
        for each in (chat, model.load_conversation(tmp_path / "chat.safetensors"))
    )
    assert goes_on == loaded


class Careless(Sampling):
    """Takes the worst token within ten epsilon of the best."""

    def choose(self, logits: NDArray[np.float32], position: int, vocabulary: object = None) -> int:
        near = np.flatnonzero(logits >= logits.max() - LENIENCE[0])
        return int(near[logits[near].argmin()])


LENIENCE = [0.0]


def test_accepting_tokens_at_ten_epsilon_would_be_seen(rounding_model: Model) -> None:
    model = rounding_model
    LENIENCE[0] = 10 * epsilon(model)
    prompt = story_prompts(1)[0]
    plan, ids = strategies.Plan("verify"), model.encode(prompt)
    choices = strategies.run(plan, model.decoder("verify"), ids, Careless(), 24, strategies.Counts())
    assert max(gaps(model, ids, [choice.id for choice in choices])) > epsilon(model)


def test_exporting_with_a_precision_equals_quantizing_the_export(quantized: Path, tmp_path: Path) -> None:
    bits = 4 if "int4" in quantized.name else 8
    export(SAMPLE, tmp_path / "bundle", ExportOptions(quantization=Quantization(bits=bits)))
    files = [Manifest.read(folder / "recycle.json").files for folder in (quantized, tmp_path / "bundle")]
    assert files[0] == files[1]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keep", [(), ("lm_head", "embed_tokens"), ("down_proj",)], ids=str)
def test_odd_shapes_fall_back_to_smaller_blocks(tied: bool, keep: tuple[str, ...], tmp_path: Path) -> None:
    """Rows of 32 and 48 values take blocks of 32 and 16; a width of 40 stays float32."""
    config = tiny.tiny_config(tied_embeddings=tied, intermediate_size=40 if keep == () else 48)
    export(tiny.write_checkpoint(tmp_path / "model", config), tmp_path / "plain")
    quantize_bundle(tmp_path / "plain", tmp_path / "small", Quantization(block_size=128, keep=keep))
    model = recycle_onnx.load(tmp_path / "small")
    for strategy in model.strategies:
        assert len(model.generate("the cat", max_new_tokens=6, strategy=strategy).tokens) >= 1


def test_the_cost_can_be_measured_on_a_text_of_ones_own(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog on the log. " * 40)
    _, cost = quantize_bundle(tiny_bundle, tmp_path / "small", options=QuantizeOptions(text=tmp_path / "text.txt"))
    assert cost is not None
    assert cost.text == "text.txt"
    assert cost.tokens > 100


def test_bundles_that_cannot_be_quantized_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    quantize_bundle(tiny_bundle, tmp_path / "small")
    with pytest.raises(InputError, match="is int4 already"):
        quantize_bundle(tmp_path / "small", tmp_path / "smaller")
    (tmp_path / "short.txt").write_text("the cat")
    for text, message in (("nowhere.txt", "no such text file"), ("short.txt", "expected at least")):
        with pytest.raises(InputError, match=message):
            quantize_bundle(tiny_bundle, tmp_path / "other", options=QuantizeOptions(text=tmp_path / text))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt", "small"]


def test_a_bundle_is_not_replaced_by_its_own_quantization(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = sha256(tmp_path / "bundle" / "model.onnx.data")
    with pytest.raises(InputError, match="give another name"):
        quantize_bundle(tmp_path / "bundle", tmp_path / "bundle", force=True)
    assert sha256(tmp_path / "bundle" / "model.onnx.data") == before

"""The `standard` flavour: ONNX's operators only, batches with padding, blocks that ONNX Runtime fuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import recycle_onnx
from recycle_onnx.bundle import Manifest, graph_file
from recycle_onnx.contract import GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export import ExportOptions, HalfPrecision, Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.export.flavours import Precision
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.ort.sessions import open_session, session_options
from tests.helpers import tiny
from tests.helpers.prompts import story_prompts

TOLERANCE = 1e-4
KINDS = ("full", "recycler")
PRECISIONS: dict[str, Precision | None] = {
    "fp32": None,
    "fp16": HalfPrecision(),
    "int8": Quantization(8),
    "int8, symmetric": Quantization(8, symmetric=True),
    "int4": Quantization(4),
    "int4, symmetric": Quantization(4, symmetric=True),
    "int4, nothing kept": Quantization(4, keep=()),
    "int4, float16 activations": Quantization(4, activations="fp16"),
}
IDS = np.random.default_rng(0).integers(1, 300, (3, 9))
MASK = np.array([[0] * 3 + [1] * 6, [1] * 9, [0] * 5 + [1] * 4])
"""Three texts that end together."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.tiny_config(context_length=512, vocab_size=299)
    return tiny.write_checkpoint(tmp_path_factory.mktemp("standard") / "model", config, seed=3)


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def written(checkpoint: Path, name: str, flavour: str = "standard") -> Path:
    """The checkpoint as a bundle of that precision."""
    out = checkpoint.parent / f"{flavour}, {name}"
    if not out.exists():
        export(checkpoint, out, ExportOptions(flavour=flavour, quantization=PRECISIONS[name], compare=False))
    return out


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    return written(checkpoint, "fp32")


def spec_of(bundle: Path, kind: str) -> GraphSpec:
    return Manifest.read(bundle / "recycle.json").graphs[kind]


def session(bundle: Path, kind: str = "full", **attributes: Any) -> ort.InferenceSession:
    """One with our options, and some `attributes` of its own."""
    options = session_options(1)
    for name, value in attributes.items():
        setattr(options, name, value)
    return open_session(bundle / graph_file(kind), spec_of(bundle, kind), "cpu", 1, options)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Its nodes, and those of graphs within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def test_no_operator_is_from_elsewhere(checkpoint: Path, precision: str) -> None:
    folder = written(checkpoint, precision)
    assert Manifest.read(folder / "recycle.json").flavour == "standard"
    for kind in KINDS:
        onnx.checker.check_model(folder / graph_file(kind), full_check=True)
        model = onnx.load(folder / graph_file(kind), load_external_data=False)
        assert {node.domain for node in all_nodes(model.graph)} == {""}
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    other = onnx.load(written(checkpoint, "fp32", "ort") / "model.onnx", load_external_data=False)
    assert {node.domain for node in all_nodes(other.graph)} == {"", "com.microsoft"}


def calls(bundle: Path, kind: str, runner: Any, mask: NDArray[np.int64], rows: int, *splits: int) -> NDArray[Any]:
    """Logits of IDS in calls on so many tokens each, in buffers of `rows` rows, or growing ones (0)."""
    spec, end, found = spec_of(bundle, kind), 0, []
    past = {n: np.full((3, spec.num_kv_heads, rows, spec.head_dim), 77, spec.float_type) for n in spec.past_names()}
    hidden = np.random.default_rng(1).standard_normal((*IDS.shape, spec.state_size)).astype(spec.float_type)
    for count in splits:
        piece, end = slice(end, end + count), end + count
        seen = np.zeros((3, rows + 2 if rows else end), np.int64)
        seen[:, :end] = mask[:, :end]
        feed = {"input_ids": IDS[:, piece], "attention_mask": seen, **past}
        if kind == "recycler":
            feed[spec.state_input] = hidden[:, piece]
        logits, _, *present = runner.run(None, feed)
        past = dict(zip(spec.past_names(), present, strict=True))
        assert {array.shape[2] for array in present} == {rows or end}
        found.append(logits)
    return np.concatenate(found, axis=1)


def difference(found: NDArray[Any], wanted: NDArray[Any], mask: NDArray[np.int64] = MASK) -> float:
    """The largest, of rows that are no padding, as a part of the largest logit."""
    assert np.isfinite(found).all()
    return float(np.abs(found - wanted)[mask.astype(bool)].max() / np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 12], ids=["growing", "static"])
def test_onnxs_reference_evaluator_agrees(kind: str, rows: int, precision: str, checkpoint: Path) -> None:
    """(Not optimized: fused products have 8-bit activations.)"""
    folder = written(checkpoint, precision)
    evaluator = ReferenceEvaluator(onnx.load(folder / graph_file(kind)))
    plain = session(folder, kind, graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    wanted = calls(folder, kind, evaluator, MASK, rows, 7, 1, 1)
    tolerance = 1e-2 if spec_of(folder, kind).float_type == "float16" else TOLERANCE
    assert difference(calls(folder, kind, plain, MASK, rows, 7, 1, 1), wanted) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind: str, bundle: Path) -> None:
    runner = session(bundle, kind)
    whole = calls(bundle, kind, runner, MASK, 12, 9)
    for splits in ((6, 3), (7, 1, 1), (4, 5)):
        assert difference(calls(bundle, kind, runner, MASK, 0, *splits), whole) < TOLERANCE
        assert difference(calls(bundle, kind, runner, MASK, 12, *splits), whole) < TOLERANCE
    assert difference(calls(bundle, kind, runner, np.ones_like(MASK), 12, 9), whole) > 0.01


def test_a_padded_text_is_the_text_alone(bundle: Path) -> None:
    together = calls(bundle, "full", session(bundle), MASK, 12, 6, 3)
    for row, mask in enumerate(MASK):
        ids = IDS[row, mask.argmax() :].tolist()
        half = Half(session(bundle), spec_of(bundle, "full"), 64)
        alone = half.read(ids, None, np.empty((len(ids), 32), np.float32), keep=len(ids))
        scale = np.abs(alone).max()
        assert np.abs(together[row, mask.argmax() :] - alone).max() < TOLERANCE * scale
        assert np.abs(together[row - 1, mask.argmax() :] - alone).max() > 0.1 * scale


def test_a_hole_in_the_mask_is_a_token_that_was_never_there(bundle: Path) -> None:
    """A rejected token's column may stay, left out of the mask."""
    spec, runner = spec_of(bundle, "full"), session(bundle)
    past = {n: np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32) for n in spec.past_names()}

    def step(ids: list[int], mask: list[int], past: dict[str, Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        logits, _, *present = runner.run(
            None, {"input_ids": np.array([ids]), "attention_mask": np.array([mask]), **past}
        )
        return logits[0], dict(zip(spec.past_names(), present, strict=True))

    _, rejected = step([5, 6, 7], [1, 1, 1], past)
    with_hole, _ = step([8, 9], [1, 1, 0, 1, 1], rejected)
    without_hole, _ = step([8, 9], [1, 1, 1, 1, 1], rejected)
    _, kept = step([5, 6], [1, 1], past)
    wanted, _ = step([8, 9], [1, 1, 1, 1], kept)
    assert np.abs(with_hole - wanted).max() < TOLERANCE * np.abs(wanted).max()
    assert np.abs(without_hole - wanted).max() > 0.01 * np.abs(wanted).max()


def test_rolling_back_and_growing_buffers_change_nothing(bundle: Path) -> None:
    spec = spec_of(bundle, "full")
    ids = np.random.default_rng(2).integers(1, 299, 300).tolist()
    states = np.empty((300, 32), np.float32)
    wanted = Half(session(bundle), spec, 512).read(ids, None, states, keep=300).copy()
    half = Half(session(bundle), spec, 512)
    half.read(ids[:250], None, states[:250])
    half.step([9, 9, 9], keep=1)  # of another text
    half.crop(250)
    assert half.cache.capacity == 256
    steps = [half.step(ids[start : start + 2], keep=2).copy() for start in range(250, 300, 2)]
    assert half.cache.capacity == 512
    assert np.abs(np.concatenate(steps) - wanted[250:]).max() < TOLERANCE * np.abs(wanted).max()


def test_the_runtimes_buffers_are_written_in_place(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime warns of a TensorScatter that copies its buffer first."""
    warning, spec = "in-place optimization not activated", spec_of(bundle, "full")
    loud = session(bundle, log_severity_level=2)
    half = Half(loud, spec, 64)
    half.step([1, 2, 3], keep=1)
    half.step([4], keep=1)
    assert warning not in capfd.readouterr().err
    calls(bundle, "full", loud, MASK, 12, 9)
    assert warning in capfd.readouterr().err


def test_verify_gives_the_text_of_full(standard_bundle: Path) -> None:
    model = recycle_onnx.load(standard_bundle)
    for prompt in story_prompts(8):
        full, verify = (model.generate(prompt, max_new_tokens=24, strategy=name) for name in ("full", "verify"))
        assert verify.tokens == full.tokens
        assert verify.lossless == "exact"


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name.startswith("int")], scope="module")
def test_products_are_fused_with_8_bit_activations(precision: str, checkpoint: Path, tmp_path: Path) -> None:
    """What ONNX Runtime makes of the graph has the products that an `ort` bundle has."""
    for kind in KINDS:
        session(written(checkpoint, precision), kind, optimized_model_filepath=str(tmp_path / "made.onnx"))
        made = onnx.load(tmp_path / "made.onnx", load_external_data=False).graph
        other = onnx.load(written(checkpoint, precision, "ort") / graph_file(kind), load_external_data=False).graph
        products = [node for node in made.node if node.op_type == "MatMulNBits"]
        assert {attribute.i for node in products for attribute in node.attribute if "level" in attribute.name} == {4}
        counts = Counter(node.op_type for node in other.node)
        assert len(products) == counts["MatMulNBits"]
        assert sum(node.op_type == "MatMul" for node in made.node) == counts["MatMul"]  # the projection, at int8


@pytest.mark.parametrize("precision", ["int8", "int8, symmetric", "int4", "int4, symmetric"], scope="module")
def test_quantized_flavours_hold_the_same_numbers(precision: str, checkpoint: Path) -> None:
    halves = []
    for flavour in ("ort", "standard"):
        folder = written(checkpoint, precision, flavour)
        halves.append(Half(session(folder), spec_of(folder, "full"), 64))
        assert recycle_onnx.load(folder).generate("the cat", max_new_tokens=4, strategy="verify").tokens
    ids, states = IDS[0].tolist(), np.empty((9, 32), np.float32)
    ort_logits, logits = (half.read(ids, None, states, keep=9) for half in halves)
    assert np.abs(logits - ort_logits).max() < 0.02 * np.abs(ort_logits).max()  # 8-bit activations round either way


def test_an_odd_number_of_zero_points_is_packed(tmp_path: Path) -> None:
    """A head of 299 rows in four bits, a block each."""
    config = tiny.tiny_config(tied_embeddings=False, vocab_size=299)
    checkpoint, how = tiny.write_checkpoint(tmp_path / "model", config), Quantization(4, keep=())
    logits = []
    for flavour in ("ort", "standard"):
        export(checkpoint, tmp_path / flavour, ExportOptions(flavour=flavour, quantization=how, compare=False))
        half = recycle_onnx.load(tmp_path / flavour).decoder("full").full
        logits.append(half.step([5], keep=1).copy())
    names = {value.name for value in onnx.load(tmp_path / "standard" / "model.onnx").graph.initializer}
    assert "lm_head.weight.q4" in names
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()  # the embedding has 8 bits, or 4


def test_a_tied_table_is_stored_once_and_never_in_four_bits(checkpoint: Path) -> None:
    folder = written(checkpoint, "int4, nothing kept")
    assert Manifest.read(folder / "recycle.json").quantization["keep"] == ["embed_tokens"]  # type: ignore[index]
    for kind in KINDS:
        graph = onnx.load(folder / graph_file(kind), load_external_data=False).graph
        tables = [tensor for tensor in graph.initializer if tensor.name.startswith("model.embed_tokens.weight.q")]
        assert {tensor.data_type for tensor in tables} == {onnx.TensorProto.UINT8}
        places = {tuple((entry.key, entry.value) for entry in tensor.external_data) for tensor in tables}
        assert len(tables) == 2
        assert len(places) == 1
        assert ("location", "model.onnx.data") in next(iter(places))


def test_quantizing_reads_the_flavour_from_the_bundle(checkpoint: Path, bundle: Path) -> None:
    how = PRECISIONS["int4"]
    manifest, _ = quantize_bundle(bundle, checkpoint.parent / "quantized", how, QuantizeOptions(compare=False))
    assert manifest.flavour == "standard"
    assert manifest.files == Manifest.read(written(checkpoint, "int4") / "recycle.json").files


def test_a_head_size_that_ort_refuses_is_no_matter(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(head_dim=12))
    with pytest.raises(InputError, match=r"head_dim is 12.*--flavour standard"):
        export(checkpoint, tmp_path / "ort")
    export(checkpoint, tmp_path / "standard", ExportOptions(flavour="standard"))
    assert recycle_onnx.load(tmp_path / "standard").generate("the cat", max_new_tokens=4, strategy="verify").tokens

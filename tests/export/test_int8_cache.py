"""Keys and values in eight bits: the attention against ONNX Runtime's own on floats, and the bundles' graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export import ExportOptions, HalfPrecision, Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.export.int8_cache.attention import CacheScales, orthogonal, with_int8_cache
from recycle_onnx.runtime.ort.provider_table import PROVIDERS
from recycle_onnx.runtime.ort.providers import why_too_old, why_unfit
from tests.helpers.prompts import LONG_STORY

pytestmark = pytest.mark.skipif(bool(why_too_old("ort", "int8")), reason="ONNX Runtime is too old")
HEADS, KV_HEADS, SIZE, ROWS, LENGTH = 6, 2, 16, 192, 150
CLOSE = 0.02
"""A part of the largest value: eight bits a channel miss by less, and twice the step by more."""
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"do_rotary": 1},
    "interleaved": {"do_rotary": 1, "rotary_interleaved": 1},
    "window": {"local_window_size": 7},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.1},
    "separate": {"do_rotary": 1, "separate": True},
}
Floats = NDArray[np.float32]


def attention_graph(form: dict[str, Any]) -> ir.Model:
    """One GroupQueryAttention with the inputs that the contract gives it."""
    attributes = {name: value for name, value in form.items() if name != "separate"}
    sizes = [HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE]
    parts = ["query", "key", "value"] if form.get("separate") else ["packed", "", ""]
    widths = dict(zip(parts, sizes if form.get("separate") else [sum(sizes), 0, 0], strict=True))
    angles = np.outer(np.arange(ROWS), 100.0 ** -np.linspace(0, 1, SIZE // 2))
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    used = list(tables) if form.get("do_rotary") else []
    cache = [1, KV_HEADS, "past_sequence_length", SIZE]
    names = ("past_key_values.0.key", "past_key_values.0.value", "present.0.key", "present.0.value")
    past, present = names[:2], names[2:]
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["length"], keepdims=0),
        helper.make_node("Sub", ["length", "axis"], ["last"]),
        helper.make_node("Cast", ["last"], ["last_index"], to=TensorProto.INT32),
        helper.make_node("Squeeze", ["length"], ["scalar"]),
        helper.make_node("Cast", ["scalar"], ["total"], to=TensorProto.INT32),
        helper.make_node(
            "GroupQueryAttention", [*parts, *past, "last_index", "total", *used], ["y", *present],
            domain="com.microsoft", num_heads=HEADS, kv_num_heads=KV_HEADS, **attributes,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "full",
        [
            info("input_ids", TensorProto.INT64, [1, "sequence_length"]),
            info("attention_mask", TensorProto.INT64, [1, "columns"]),
            *(info(name, TensorProto.FLOAT, [1, "sequence_length", width]) for name, width in widths.items() if width),
            *(info(name, TensorProto.FLOAT, cache) for name in past),
        ],
        [info("y", TensorProto.FLOAT, None), *(info(name, TensorProto.FLOAT, cache) for name in present)],
        [onnx.numpy_helper.from_array(tables[name], name) for name in used]
        + [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=11))


class Attention:
    """A runner of such a graph over one text, in buffers that past and present share."""

    def __init__(self, model: ir.Model) -> None:
        self.session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
        types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
        self.cache = {
            value.name: np.zeros((1, KV_HEADS, ROWS, SIZE), types[value.type])
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }

    def read(self, rows: dict[str, Floats], *sizes: int) -> Floats:
        """Read a text's rows [n, width] in runs of these sizes; return outputs [n, heads·D]."""
        outputs, start = [], 0
        for size in sizes:
            end = start + size
            feed = {
                "input_ids": np.zeros((1, size), np.int64),
                "attention_mask": np.ones((1, end), np.int64),
                **{name: values[None, start:end] for name, values in rows.items()},
                **self.cache,
            }
            asked = {value.name for value in self.session.get_inputs()}
            y, *present = self.session.run(None, {name: value for name, value in feed.items() if name in asked})
            self.cache = dict(zip(self.cache, present, strict=True))
            outputs.append(y[0])
            start = end
        return np.concatenate(outputs)


def rows_of(form: dict[str, Any]) -> dict[str, Floats]:
    """Random rows of a text, with channels of different sizes."""
    random = np.random.default_rng(0)
    widths = np.exp(random.normal(0, 0.4, (HEADS + 2 * KV_HEADS) * SIZE)).astype(np.float32)
    packed = random.standard_normal((LENGTH, len(widths)), np.float32) * widths
    if not form.get("separate"):
        return {"packed": packed}
    bounds = [HEADS * SIZE, (HEADS + KV_HEADS) * SIZE]
    return dict(zip(("query", "key", "value"), np.split(packed, bounds, axis=1), strict=True))


def in_eight_bits(form: dict[str, Any], seen: Attention, wider: float = 1) -> Attention:
    """The same attention with steps that suit what `seen` has in its caches."""
    keys, values = (cache[0] for cache in seen.cache.values())
    largest = [np.abs(rows).max(axis=1) / 127 * np.float32(wider) for rows in (keys @ orthogonal(SIZE), values)]
    model = attention_graph(form)
    with_int8_cache(model, [CacheScales(*largest)])
    return Attention(model)


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_close_to_that_on_floats(form: str) -> None:
    floats, rows = Attention(attention_graph(FORMS[form])), rows_of(FORMS[form])
    wanted = floats.read(rows, 130, *[1] * 20)
    read = in_eight_bits(FORMS[form], floats).read(rows, 130, *[1] * 20)
    assert np.abs(read - wanted).max() < CLOSE * np.abs(wanted).max()
    coarse = in_eight_bits(FORMS[form], floats, wider=16).read(rows, 130, *[1] * 20)
    assert np.abs(coarse - wanted).max() > CLOSE * np.abs(wanted).max()


@pytest.mark.parametrize("form", ["rotary", "window", "softcap"])
def test_runs_of_all_sizes_give_the_same_to_the_bit(form: str) -> None:
    floats, rows = Attention(attention_graph(FORMS[form])), rows_of(FORMS[form])
    floats.read(rows, LENGTH)
    single = in_eight_bits(FORMS[form], floats)
    wanted = single.read(rows, *[1] * LENGTH)
    for sizes in ((150,), (18, 16, 17, 99), (120, 10, 10, 10), (2,) * 75, (147, 3), (133, 17)):
        other = in_eight_bits(FORMS[form], floats)
        assert np.array_equal(other.read(rows, *sizes), wanted)
        assert all(np.array_equal(a, b) for a, b in zip(single.cache.values(), other.cache.values(), strict=True))


def test_what_lies_beyond_the_text_is_not_seen() -> None:
    floats, rows = Attention(attention_graph({})), rows_of({})
    wanted = floats.read(rows, LENGTH)
    read, dirty = (in_eight_bits({}, floats) for _ in range(2))
    for cache in dirty.cache.values():
        cache[:] = 77
    assert np.array_equal(read.read(rows, LENGTH), dirty.read(rows, LENGTH))
    assert wanted.shape == (LENGTH, HEADS * SIZE)


@pytest.mark.parametrize("size", [16, 48])
def test_turning_changes_no_product(size: int) -> None:
    turn = orthogonal(size)
    assert np.allclose(turn @ turn.T, np.eye(size), atol=1e-6)
    outlier = np.eye(1, size, dtype=np.float32)
    assert np.abs(outlier @ turn).max() < 0.6


def test_graphs_are_the_contracts_and_weights_stay(int8_bundle: Path, int8_cache_bundle: Path) -> None:
    manifest = Manifest.read(int8_cache_bundle / "recycle.json")
    for kind, spec in manifest.graphs.items():
        graph = onnx.load(int8_cache_bundle / graph_file(kind), load_external_data=False)
        onnx.checker.check_model(int8_cache_bundle / graph_file(kind))
        types = {TensorProto.UINT8: "uint8", TensorProto.INT8: "int8", TensorProto.FLOAT: "float32", 7: "int64"}
        described = {
            value.name: (
                types[value.type.tensor_type.elem_type],
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in (*graph.graph.input, *graph.graph.output)
        }
        assert described == {**spec.inputs(), **spec.optional_inputs(), **spec.outputs()}
        operators = {node.op_type for node in ir.from_proto(graph).graph.all_nodes()}
        assert {"TensorScatter", "MatMulIntegerToFloat"} <= operators
        assert not {"GroupQueryAttention", "Pad"} & operators
        assert spec.row_bytes * 4 == Manifest.read(int8_bundle / "recycle.json").graphs[kind].row_bytes
    for name in ("model.onnx.data", "recycler.onnx.data"):
        assert manifest.files[name] == Manifest.read(int8_bundle / "recycle.json").files[name]
    assert "genai_config.json" not in manifest.files
    assert not (int8_cache_bundle / "genai_config.json").exists()


def test_a_real_text_is_predicted_as_well(int8_bundle: Path, int8_cache_bundle: Path) -> None:
    floats, integers = (recycle_onnx.load(folder, threads=1) for folder in (int8_bundle, int8_cache_bundle))
    ids = floats.encode(LONG_STORY)[:200]
    losses = []
    for model in (floats, integers):
        full = model.decoder("full").full
        logits = full.read(ids, None, np.empty((len(ids), full.spec.state_size), np.float32), keep=len(ids))
        shifted = np.exp(logits[:-1] - logits[:-1].max(axis=1, keepdims=True))
        losses.append(-np.log(shifted[np.arange(199), ids[1:]] / shifted.sum(axis=1)).mean())
    assert 0 < abs(losses[1] - losses[0]) < 0.01


def test_without_it_manifests_do_not_name_it(int8_bundle: Path) -> None:
    assert "cache_type" not in (int8_bundle / "recycle.json").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ExportOptions("standard", kv="int8"), "flavour 'standard'"),
        (ExportOptions(quantization=HalfPrecision(), kv="int8"), "float16"),
        (ExportOptions(quantization=Quantization(8, activations="fp16"), kv="int8"), "float16"),
    ],
    ids=["standard", "fp16", "fp16 activations"],
)
def test_what_cannot_have_it_is_refused(
    options: ExportOptions, words: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        export(tiny_checkpoint, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_has_it_is_not_quantized_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(kv="int8"))
    with pytest.raises(InputError, match="has keys and values in int8"):
        quantize_bundle(tmp_path / "bundle", tmp_path / "small", Quantization(8), QuantizeOptions(compare=False))
    result = recycle_onnx.load(tmp_path / "bundle").generate("the cat", strategy="verify", max_new_tokens=4)
    assert result.lossless == "within_rounding"  # float32 products do not round alike, and their results are rounded


def test_other_providers_cannot_run_it(int8_cache_bundle: Path) -> None:
    manifest = Bundle.open(int8_cache_bundle).manifest
    assert why_unfit(PROVIDERS["cpu"], manifest) is None
    for name in ("cuda", "webgpu", "openvino"):
        reason = why_unfit(PROVIDERS[name], manifest)
        assert reason is not None
        assert "without --kv" in reason

"""The graphs: valid ONNX, the contract's interface, and equal to vectors that torch made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from recycle_onnx.bundle import Manifest, graph_file
from recycle_onnx.contract import GraphSpec
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.export.flavours import FLAVOURS
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.ort.sessions import open_session, session_options
from tests.helpers import tiny
from tests.vectors import MODELS, VECTORS, write_model

ATTENTION = {"ort": "GroupQueryAttention", "standard": "Attention"}
LARGEST_LAYER = {"ort": 14, "standard": 25}
AROUND_LAYERS = {"ort": 24, "standard": 50}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(name: str, flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    write_model(name, folder / "model")
    export(folder / "model", folder / "bundle", ExportOptions(flavour=flavour))
    return folder / "bundle"


def graphs(bundle: Path) -> dict[str, tuple[onnx.ModelProto, GraphSpec]]:
    specs = Manifest.read(bundle / "recycle.json").graphs
    return {
        kind: (onnx.load(bundle / graph_file(kind), load_external_data=False), spec) for kind, spec in specs.items()
    }


def half(bundle: Path, kind: str) -> Half:
    manifest = Manifest.read(bundle / "recycle.json")
    spec = manifest.graphs[kind]
    return Half(open_session(bundle / graph_file(kind), spec, "cpu", None), spec, manifest.context_length)


def test_the_checker_passes(bundle: Path) -> None:
    for kind in ("full", "recycler"):
        onnx.checker.check_model(bundle / graph_file(kind), full_check=True)


def test_opset_and_ir_version_run_back_to_older_runtimes(bundle: Path, flavour: str) -> None:
    opsets, ir_version = ({"": 23, "com.microsoft": 1}, 11) if flavour == "ort" else ({"": 24}, 12)
    for graph, _ in graphs(bundle).values():
        assert {entry.domain: entry.version for entry in graph.opset_import} == opsets
        assert graph.ir_version == ir_version
    provenance = Manifest.read(bundle / "recycle.json").provenance
    assert (provenance["opset"], provenance["ir_version"]) == (opsets[""], ir_version)


def described(values: list[onnx.ValueInfoProto]) -> dict[str, tuple[str, list[str | int]]]:
    kinds = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}
    return {
        value.name: (
            kinds[value.type.tensor_type.elem_type],
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def test_names_types_and_dimensions_are_the_contracts(bundle: Path) -> None:
    for graph, spec in graphs(bundle).values():
        inputs = {**spec.inputs(), **spec.optional_inputs()}
        assert described(graph.graph.input) == {n: (t.dtype, list(t.shape)) for n, t in inputs.items()}
        assert described(graph.graph.output) == {n: (t.dtype, list(t.shape)) for n, t in spec.outputs().items()}


def test_a_decoder_layer_has_few_nodes(bundle: Path, flavour: str) -> None:
    for graph, spec in graphs(bundle).values():
        operators = [node.op_type for node in graph.graph.node]
        attention, most = ATTENTION[flavour], LARGEST_LAYER[flavour]
        first, last = operators.index(attention), len(operators) - 1 - operators[::-1].index(attention)
        assert spec.num_layers == 1 or (last - first) / (spec.num_layers - 1) <= most
        assert len(operators) <= AROUND_LAYERS[flavour] + most * spec.num_layers


def test_embedding_and_head_are_stored_once(bundle: Path, name: str) -> None:
    files = {
        entry.value
        for graph, _ in graphs(bundle).values()
        for tensor in graph.graph.initializer
        if tensor.name in ("model.embed_tokens.weight", "lm_head.weight")
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert files == {"model.onnx.data"}


def differences(found: dict[str, NDArray[np.float32]], name: str) -> dict[str, float]:
    """Largest difference from torch's vectors, as a part of the largest value."""
    expected = load_file(VECTORS / f"{name}.safetensors")
    return {
        key: float(np.abs(value - expected[key]).max() / np.abs(expected[key]).max()) for key, value in found.items()
    }


def computed(bundle: Path, name: str, splits: list[int]) -> dict[str, NDArray[np.float32]]:
    """What both graphs give for the vectors' tokens, cut into calls of the given lengths."""
    vectors = load_file(VECTORS / f"{name}.safetensors")
    ids = vectors["input_ids"].tolist()
    full, module = half(bundle, "full"), half(bundle, "recycler")
    hidden = np.empty((len(ids), full.spec.hidden_size), np.float32)
    states = np.empty_like(hidden[1:])
    logits, module_logits = [], []
    start = 0
    for rows in splits:
        piece = slice(start, start + rows)
        logits.append(full.read(ids[piece], None, hidden[piece], keep=rows).copy())
        start += rows
    assert start == len(ids)
    start = 0
    for rows in [splits[0] - 1, *splits[1:]]:
        piece = slice(start, start + rows)
        shifted = ids[start + 1 : start + 1 + rows]
        module_logits.append(module.read(shifted, hidden[piece], states[piece], keep=rows).copy())
        start += rows
    return {
        "logits": np.concatenate(logits),
        "hidden_states": hidden,
        "recycler_logits": np.concatenate(module_logits),
        "recycler_hidden_states": states,
        "key": full.cache.arrays[0][:, :, : len(ids)].copy(),
        "recycler_key": module.cache.arrays[0][:, :, : len(ids) - 1].copy(),
    }


@pytest.mark.parametrize("splits", [[40], [2, 38], [29, 1, 2, 3, 5], [36, 1, 1, 1, 1]], ids=str)
def test_prefill_and_steps_equal_torchs_vectors(bundle: Path, name: str, splits: list[int]) -> None:
    assert max(differences(computed(bundle, name, splits), name).values()) < TOLERANCE


def test_another_rope_base_fails_the_same_comparison(name: str, flavour: str, tmp_path: Path) -> None:
    write_model(name, tmp_path / "model", rope_theta=20000.0)
    export(tmp_path / "model", tmp_path / "bundle", ExportOptions(flavour=flavour))
    assert differences(computed(tmp_path / "bundle", name, [40]), name)["logits"] > TOLERANCE


def test_a_mask_wider_than_the_text_and_a_growing_cache_give_the_same(bundle: Path) -> None:
    """Static buffers with a wide mask, and optimum's way: past of T - S rows, present of T, mask of T columns."""
    spec = Manifest.read(bundle / "recycle.json").graphs["full"]
    session = ort.InferenceSession(bundle / graph_file("full"), session_options(1))
    ids = np.arange(3, 15)[None]
    past = {n: np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32) for n in spec.past_names()}
    grown = []
    length = 0
    for rows in (7, 1, 2, 2):
        length += rows
        feed = {"input_ids": ids[:, length - rows : length], "attention_mask": np.ones((1, length), np.int64), **past}
        logits, _, *present = session.run(None, feed)
        past = dict(zip(spec.past_names(), present, strict=True))
        assert present[0].shape[2] == length
        grown.append(logits[0])
    static = half(bundle, "full")
    hidden = np.empty((12, spec.hidden_size), np.float32)
    wide = static.read(ids[0].tolist(), None, hidden, keep=12)
    assert static.cache.mask.shape[1] > 12
    np.testing.assert_allclose(np.concatenate(grown), wide, atol=1e-4 * np.abs(wide).max())


def test_logits_to_keep_gives_the_last_rows_and_zero_gives_all(bundle: Path) -> None:
    spec = Manifest.read(bundle / "recycle.json").graphs["full"]
    session = ort.InferenceSession(bundle / graph_file("full"), session_options(1))
    past = {n: np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32) for n in spec.past_names()}
    feed = {"input_ids": np.arange(1, 7)[None], "attention_mask": np.ones((1, 6), np.int64), **past}
    everything = session.run(["logits"], feed)[0]
    assert everything.shape[1] == 6
    for keep, rows in ((0, 6), (1, 1), (4, 4), (9, 6)):
        kept = session.run(["logits"], {**feed, "logits_to_keep": np.array(keep)})[0]
        np.testing.assert_allclose(kept, everything[:, 6 - rows :], atol=1e-5 * np.abs(everything).max())


def test_tensors_of_every_stored_type_are_read(tmp_path: Path) -> None:
    for stored in ("float16", "bfloat16"):
        folder = tiny.write_checkpoint(tmp_path / stored, tiny.tiny_config(), dtype=stored)
        export(folder, tmp_path / f"{stored}.bundle")

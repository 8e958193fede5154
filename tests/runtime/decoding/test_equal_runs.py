"""Quantized bundles whose runs of all sizes round alike: their texts are those of `full`, and are called `exact`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest, describe_files
from recycle_onnx.cache import cache_folder
from recycle_onnx.export import Quantization, QuantizeOptions, quantize_bundle
from recycle_onnx.files import read_json, write_json
from recycle_onnx.machine import processor
from recycle_onnx.runtime.decoding import equal_runs
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.sessions import session_options
from tests.helpers.campaigns import LONG
from tests.helpers.prompts import LONG_STORY, story_prompts
from tests.helpers.runs import read
from tests.helpers.x86 import x86

SIZES = (2, 3, 4, 8, 16)
SETTINGS: list[dict[str, Any]] = [
    *({"strategy": "verify", "chain": chain} for chain in (1, 2, 3, 4)),
    {"strategy": "lookup"},
    {"strategy": "auto"},
]


@pytest.fixture(scope="module", params=[("ort", 8), ("ort", 4), ("standard", 8)], ids=str)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flavour, bits = request.param
    if flavour == "ort":
        shared: Path = request.getfixturevalue(f"int{bits}_bundle")
        return shared
    folder = tmp_path_factory.mktemp("equal") / f"{flavour}-int{bits}"
    original = request.getfixturevalue(f"{flavour}_bundle")
    quantize_bundle(original, folder, Quantization(bits), QuantizeOptions(compare=False))
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return recycle_onnx.load(bundle, threads=1)


def without_second_row(bundle: Path, folder: Path) -> Path:
    """A copy whose attention takes one row as it comes, as bundles of before did."""
    shutil.copytree(bundle, folder)
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    fewest = next(tensor for tensor in graph.graph.initializer if tensor.name == "second_row.fewest")
    fewest.CopyFrom(onnx.numpy_helper.from_array(np.array([1]), fewest.name))
    onnx.save(graph, path)
    manifest = Manifest.read(folder / "recycle.json")
    manifest.files.update(describe_files(folder, ["model.onnx"]))
    manifest.write(folder / "recycle.json")
    return folder


@x86
def test_runs_of_all_sizes_agree_to_the_bit(model: Model) -> None:
    ids = model.encode(LONG_STORY)[:288]  # beyond the cache's first 256 rows
    single = read(model, ids, 1)
    for size in SIZES:
        for one, several in zip(single, read(model, ids, size), strict=True):
            assert np.array_equal(one, several), size


@x86
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
def test_every_strategy_gives_the_text_of_full_and_calls_it_exact(model: Model, sampled: dict[str, Any]) -> None:
    accepted = 0
    for prompt in story_prompts(200)[:: 25 if LONG else 50]:
        expected = model.generate(prompt, strategy="full", max_new_tokens=40, **sampled)
        for settings in SETTINGS:
            result = model.generate(prompt, max_new_tokens=40, **settings, **sampled)
            assert result.tokens == expected.tokens, (prompt, settings)
            assert result.lossless == "exact"
            accepted += result.stats.accepted
    assert accepted > (100 if LONG else 50)


@x86
def test_a_text_up_to_the_contexts_end_is_that_of_full(model: Model) -> None:
    context = model.bundle.manifest.context_length
    ids = (model.encode(LONG_STORY) * 2)[: context - 24]
    full, verify = (
        model.generate(ids, strategy=strategy, stop_ids=(), max_new_tokens=100) for strategy in ("full", "verify")
    )
    assert len(full.tokens) == 24
    assert verify.tokens == full.tokens


def test_without_the_second_row_runs_differ_and_the_label_says_so(bundle: Path, tmp_path: Path) -> None:
    model = recycle_onnx.load(without_second_row(bundle, tmp_path / "old"), threads=1)
    ids = model.encode(LONG_STORY)[:48]
    assert not np.array_equal(read(model, ids, 1)[0], read(model, ids, 2)[0])
    assert not model.equal_runs
    assert model.generate(ids, strategy="verify", max_new_tokens=2).lossless == "within_rounding"
    assert model.generate(ids, strategy="full", max_new_tokens=2).lossless == "exact"


def test_blocks_whose_kernel_has_a_row_of_its_own_are_within_rounding(sample_bundle: Path, tmp_path: Path) -> None:
    manifest, cost = quantize_bundle(
        sample_bundle, tmp_path / "b", Quantization(bits=4, block_size=64), QuantizeOptions(compare=False)
    )
    assert manifest.quantization is not None
    model = recycle_onnx.load(tmp_path / "b")
    assert cost.equal_runs == (cost.epsilon == 0) == model.equal_runs == manifest.quantization["fidelity"]["equal_runs"]
    expected = "exact" if model.equal_runs else "within_rounding"
    assert model.generate("One day", strategy="lookup", max_new_tokens=2).lossless == expected


@pytest.mark.parametrize("room", [0, 1, 5], ids=["no spare row", "one", "some"])
def test_buffers_with_no_row_to_spare_and_growing_ones_stay_legal(bundle: Path, room: int) -> None:
    """What another runtime may bring: the graph adds its row only where there is room for it."""
    opened = Bundle.open(bundle)
    spec = opened.manifest.graphs["full"]
    session = ort.InferenceSession(opened.graph("full"), session_options(1), providers=["CPUExecutionProvider"])
    ids = np.arange(3, 23)[None]
    static, growing = (
        {name: np.zeros((1, spec.num_kv_heads, rows, spec.head_dim), np.float32) for name in spec.past_names()}
        for rows in (ids.shape[1] + room, 0)
    )
    for end in range(1, ids.shape[1] + 1):
        logits = []
        for past, rows in ((static, ids.shape[1] + room), (growing, end)):
            feed = {"input_ids": ids[:, end - 1 : end], "attention_mask": np.ones((1, end), np.int64), **past}
            found = dict(zip(spec.outputs(), session.run(list(spec.outputs()), feed), strict=True))
            logits.append(found["logits"])
            for name, present in zip(spec.past_names(), spec.present_names(), strict=True):
                assert found[present].shape[2] == rows
                past[name] = found[present]
        assert np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()


def test_what_was_seen_is_remembered(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recycle_onnx.load(bundle, threads=2).equal_runs
    monkeypatch.setattr(equal_runs, "try_runs", lambda _: pytest.fail("it was tried before"))
    assert recycle_onnx.load(bundle, threads=2).equal_runs == first


@pytest.mark.parametrize("stale", ["processor", "onnxruntime", "version", "damaged"])
def test_another_machine_or_runtime_is_tried_anew(bundle: Path, stale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recycle_onnx.load(bundle, threads=2).equal_runs in (True, False)
    [path] = Path(cache_folder() / "equal_runs").glob(f"{Bundle.open(bundle).digest[:32]}-cpu-2.json")
    if stale == "damaged":
        path.write_text("{")
    elif stale == "processor":
        monkeypatch.setattr(processor, "identity", lambda: "another one")
    else:
        write_json(path, read_json(path) | {stale: 0})
    tried: list[object] = []
    monkeypatch.setattr(equal_runs, "try_runs", lambda decoder: bool(tried.append(decoder)))
    model = recycle_onnx.load(bundle, threads=2)
    assert (model.equal_runs, model.equal_runs, len(tried)) == (False, False, 1)
    monkeypatch.undo()
    path.unlink()


def test_a_cache_that_cannot_be_written_is_no_error(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "file"))
    assert recycle_onnx.load(bundle).equal_runs in (True, False)


def test_float32_is_exact_and_float16_is_not_without_a_trial(
    sample_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal_runs, "try_runs", lambda _: pytest.fail("nothing to try"))
    how = Quantization(8, activations="fp16")
    quantize_bundle(sample_bundle, tmp_path / "fp16", how, QuantizeOptions(compare=False))
    for folder, expected in ((sample_bundle, "exact"), (tmp_path / "fp16", "within_rounding")):
        result = recycle_onnx.load(folder).generate("One day", strategy="verify", max_new_tokens=2)
        assert result.lossless == expected
    graph = onnx.load(tmp_path / "fp16" / "model.onnx", load_external_data=False).graph
    assert "Pad" not in {node.op_type for node in graph.node}  # its row would only cost time

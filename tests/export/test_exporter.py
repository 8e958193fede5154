"""What an export leaves on disk, and what it refuses to call done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recycle_onnx.bundle import Bundle
from recycle_onnx.checkpoint import attach
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.export.external_data import ALIGNMENT, LARGE, PAGE, ExternalDataWriter
from tests.helpers import tiny

SAMPLE = Path(__file__).parents[2] / "samples" / "stories"


def test_a_bundle_lists_every_file_with_its_hash(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=True)
    on_disk = {path.name for path in tiny_bundle.iterdir()} - {"recycle.json"}
    assert set(bundle.manifest.files) == on_disk


def test_exporting_twice_gives_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifests = [export(tiny_checkpoint, tmp_path / name).manifest for name in "ab"]
    assert manifests[0].files == manifests[1].files


def test_the_sample_agrees_with_the_reference_that_training_left(tmp_path: Path) -> None:
    checked = export(SAMPLE, tmp_path / "bundle").self_check
    assert checked.against_reference is not None
    assert checked.against_reference < 1e-5
    assert checked.prefill_against_steps < 1e-5


def test_graphs_that_depart_from_torch_are_not_written(tmp_path: Path) -> None:
    attach(SAMPLE, tmp_path / "model")
    reference = load_file(SAMPLE / "recycler" / "reference.safetensors")
    reference["logits"] += 0.05 * np.abs(reference["logits"]).max()
    save_file(reference, tmp_path / "model" / "recycler" / "reference.safetensors")
    with pytest.raises(RecycleError, match="torch and the graphs differ"):
        export(tmp_path / "model", tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_sharded_checkpoint_gives_the_same_graphs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config()
    whole = tiny.write_checkpoint(tmp_path / "whole", config)
    sharded = tiny.write_base(tmp_path / "sharded", config)
    tensors = load_file(sharded / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    (sharded / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    attach(sharded, tmp_path / "attached")
    manifests = [
        export(folder, tmp_path / f"{folder.name}.bundle").manifest for folder in (whole, tmp_path / "attached")
    ]
    assert manifests[0].files["model.onnx.data"] == manifests[1].files["model.onnx.data"]


def test_a_base_elsewhere_is_found_by_its_path(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    attach(base, tmp_path / "modules" / "own", reference=True)
    assert not (tmp_path / "modules" / "own" / "model.safetensors").exists()
    assert export(tmp_path / "modules" / "own", tmp_path / "bundle").manifest.default_strategy == "auto"


def test_tensors_start_on_cache_lines_large_ones_on_pages_and_are_written_as_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [np.arange(10, dtype=np.float32), rng.integers(0, 9, (3, LARGE // 8)), np.ones((3, 5), np.int64)]
    with ExternalDataWriter(tmp_path / "x.data") as writer:
        tensors = [writer.write(f"t{index}", [array[:2], array[2:]]) for index, array in enumerate(arrays)]
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.offset is not None
        assert tensor.offset % (PAGE if array.nbytes >= LARGE else ALIGNMENT) == 0
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert (tmp_path / "x.data").stat().st_size == PAGE + arrays[1].nbytes + arrays[2].nbytes


def test_a_module_can_be_given_a_window(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifests = [
        export(tiny_checkpoint, tmp_path / f"{window}", ExportOptions(module_window=window)).manifest
        for window in (None, 3)
    ]
    assert [manifest.recycler and manifest.recycler["window"] for manifest in manifests] == [None, 3]
    own, other = ((tmp_path / name / "recycler.onnx").read_bytes() for name in ("None", "3"))
    assert b"local_window_size" not in own
    assert b"local_window_size" in other
    assert (tmp_path / "None" / "model.onnx").read_bytes() == (tmp_path / "3" / "model.onnx").read_bytes()
    with pytest.raises(InputError, match="--module-window is 0"):
        export(tiny_checkpoint, tmp_path / "none", ExportOptions(module_window=0))

"""A checkpoint whose weights stay in a GGUF file: no copy of them is written, and the file is recognised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recycle_onnx.checkpoint import Checkpoint, Module, join
from recycle_onnx.checkpoint.sources import NamedBase, folder_of
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

pytest.importorskip("gguf")
from tests.helpers.gguf_writer import write_gguf

CONFIG = tiny.tiny_config(intermediate_size=64, num_heads=4, num_kv_heads=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base") / "base", CONFIG)


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return write_gguf(tmp_path / "models" / "model.gguf", base, "Q4_0")


def attach(file: Path, out: Path, *options: str) -> Path:
    result = run("attach", file, out, *options)
    assert result.exit_code == 0, result.output
    return out


def weights(folder: Path) -> dict[str, np.ndarray]:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.base_weights.float32(name) for name in checkpoint.base_weights.shapes}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0"])
def test_a_checkpoint_that_refers_has_the_weights_of_one_that_holds_them(base: Path, tmp_path: Path, kind: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", base, kind)
    referring = attach(file, tmp_path / "referring", "--reference")
    holding = attach(file, tmp_path / "holding")
    assert not list(referring.glob("*.safetensors"))
    assert (holding / "model.safetensors").exists()
    ours, theirs = weights(referring), weights(holding)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    with Checkpoint.open(referring) as checkpoint:
        for rows in (slice(3, 7), slice(60, None)):
            name = "model.layers.1.self_attn.q_proj.weight"  # llama.cpp has its rows in another order
            np.testing.assert_array_equal(checkpoint.base_weights.float32(name, rows), theirs[name][rows])


def test_both_are_exported_to_the_same_bytes(file: Path, tmp_path: Path) -> None:
    bundles = []
    for name, options in (("a", ["--reference"]), ("b", [])):
        checkpoint = attach(file, tmp_path / name, *options)
        bundles.append(tmp_path / f"bundle-{name}")
        assert run("export", checkpoint, bundles[-1]).exit_code == 0
    for name in ("model.onnx.data", "recycler.onnx.data"):
        first, second = ((bundle / name).read_bytes() for bundle in bundles)
        assert first == second


def test_export_reads_the_file_and_writes_no_copy_of_its_weights(file: Path, tmp_path: Path) -> None:
    with folder_of(NamedBase(str(file)), tmp_path / "bundle") as folder:
        assert sum(path.stat().st_size for path in folder.iterdir()) < file.stat().st_size
        assert not list(folder.glob("*.safetensors"))
        assert weights(folder)
    assert names(tmp_path) == ["models"]


def test_a_module_of_the_file_finds_its_weights_in_copies_of_it(file: Path, tmp_path: Path) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    module = Module.open(referring)
    copies = [attach(file, tmp_path / "copy"), attach(referring, tmp_path / "copy-of-the-other")]
    for number, copy in enumerate(copies):
        joined = join(copy, tmp_path / f"joined-{number}", module)
        assert joined.same_weights
        assert joined.config.trained_on is None
    tensors = load_file(copies[0] / "model.safetensors")
    save_file({**tensors, "model.norm.weight": 2 * tensors["model.norm.weight"]}, copies[0] / "model.safetensors")
    assert not join(copies[0], tmp_path / "changed", module).same_weights


def test_a_module_of_another_file_does_not(file: Path, base: Path, tmp_path: Path) -> None:
    module = Module.open(attach(file, tmp_path / "referring", "--reference"))
    other = write_gguf(tmp_path / "other.gguf", base, "Q8_0")
    assert not join(attach(other, tmp_path / "copy"), tmp_path / "joined", module).same_weights


def test_checkpoint_and_file_may_move_together(file: Path, tmp_path: Path) -> None:
    attach(file, tmp_path / "models" / "checkpoint", "--reference")
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    assert weights(tmp_path / "elsewhere" / "checkpoint")


def test_a_copy_made_of_one_that_refers_holds_its_weights(file: Path, tmp_path: Path) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    expected = weights(referring)
    copy = attach(referring, tmp_path / "copy")
    again = attach(referring, tmp_path / "again", "--reference")
    assert names(again) == ["recycler"]
    assert weights(again).keys() == expected.keys()
    file.unlink()
    for name, value in load_file(copy / "model.safetensors").items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_file_that_is_gone_is_named(file: Path, tmp_path: Path) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    file.unlink()
    assert_refused(run("export", referring, tmp_path / "out"), 2, "model.gguf", "put it back or attach again")


def test_a_file_that_differs_in_a_bit_is_refused(file: Path, tmp_path: Path) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert_refused(run("export", referring, tmp_path / "out"), 2, "model.gguf", "differs", "attach again")


@pytest.mark.parametrize("text", ["{}", '{"gguf": 3, "sha256": "a"}', '{"gguf": "model.gguf"}'])
def test_a_damaged_reference_is_refused(file: Path, tmp_path: Path, text: str) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    (referring / "weights.json").write_text(text)
    assert_refused(run("export", referring, tmp_path / "out"), 2, "weights.json", "GGUF")


def test_the_file_is_not_deleted_with_what_is_replaced(file: Path, tmp_path: Path) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    assert_refused(run("export", referring, tmp_path / "models", "--force"), 2, "holds", "model.gguf")
    assert file.exists()


def test_inspect_names_the_file(file: Path, tmp_path: Path) -> None:
    referring = attach(file, tmp_path / "referring", "--reference")
    assert "model.gguf" in run("inspect", referring).stdout


def test_a_vector_in_blocks_is_refused(base: Path, tmp_path: Path) -> None:
    import gguf

    def change(writer: gguf.GGUFWriter) -> None:
        name, type_ = "blk.0.attn_norm.weight", gguf.GGMLQuantizationType.Q8_0
        del writer.tensors[0][name]
        blocks = gguf.quants.quantize(np.ones(CONFIG.hidden_size, np.float32), type_)
        writer.add_tensor(name, blocks, raw_dtype=type_)

    file = write_gguf(tmp_path / "model.gguf", base, change=change)
    assert_refused(run("attach", file, tmp_path / "out"), 2, "attn_norm.weight is a vector in Q8_0", "expected F32")
    assert names(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("change", [0, 1])
def test_a_module_trained_on_a_copy_finds_the_same_weights_in_the_file(
    file: Path, base: Path, tmp_path: Path, change: int
) -> None:
    holding = attach(file, tmp_path / "holding")
    if change:  # another file with the same shapes
        tensors = load_file(base / "model.safetensors")
        tensors["model.norm.weight"] += 1
        save_file(tensors, tmp_path / "base.safetensors")
        shutil.copytree(base, tmp_path / "other")
        (tmp_path / "base.safetensors").replace(tmp_path / "other" / "model.safetensors")
        file = write_gguf(tmp_path / "models" / "other.gguf", tmp_path / "other", "Q4_0")
    result = run("attach", file, tmp_path / "out", "--reference", "--module", holding, "--no-check", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["same_weights"] is not bool(change)
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        assert checkpoint.recycler is not None
        assert (checkpoint.recycler.trained_on is None) is not bool(change)

"""Tied embeddings: the config says one thing, the files may say another, and neither is trusted alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint, attach
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.files import write_json
from tests.helpers import tiny

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, np.ndarray]


def head_alone(tensors: Tensors) -> Tensors:
    return {HEAD if name == TABLE else name: tensor for name, tensor in tensors.items()}


def twice(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: tensors[TABLE].copy()}


def two(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: tensors[TABLE][::-1].copy()}


def write(folder: Path, change: Callable[[Tensors], Tensors], *, tied: bool) -> Path:
    """The same weights, but for the tables and what the config says of them."""
    tiny.write_base(folder, tiny.tiny_config(tied_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    write_json(folder / "config.json", tiny.tiny_config(tied_embeddings=tied).to_hugging_face(**tiny.SPECIAL))
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(checkpoint: Path, bundle: Path) -> np.ndarray:
    export(checkpoint, bundle)
    return recycle_onnx.load(bundle, threads=1).decoder("full").prefill([1, 2, 3, 4]).copy()


@pytest.mark.parametrize("change", [head_alone, twice])
def test_one_table_is_read_wherever_it_lies(change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", dict, tied=True)
    other = write(tmp_path / "other", change, tied=True)
    with Checkpoint.open(other) as checkpoint:
        assert checkpoint.base.tied_embeddings
    np.testing.assert_array_equal(logits(other, tmp_path / "a"), logits(plain, tmp_path / "b"))


def test_two_tables_that_differ_are_not_tied_whatever_the_config_says(tmp_path: Path) -> None:
    stated, denied = (write(tmp_path / str(tied), two, tied=tied) for tied in (True, False))
    with Checkpoint.open(stated) as checkpoint:
        assert not checkpoint.base.tied_embeddings
    np.testing.assert_array_equal(logits(stated, tmp_path / "a"), logits(denied, tmp_path / "b"))


def test_a_module_is_attached_to_a_base_with_the_head_alone(tmp_path: Path) -> None:
    attach(write(tmp_path / "base", head_alone, tied=True), tmp_path / "model")
    export(tmp_path / "model", tmp_path / "bundle")
    assert "verify" in recycle_onnx.load(tmp_path / "bundle").strategies


@pytest.mark.parametrize(("change", "missing"), [(dict, HEAD), (head_alone, TABLE)])
def test_a_table_that_the_config_promises_and_nobody_wrote_is_missing(
    change: Callable[[Tensors], Tensors], missing: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", change, tied=False)
    with pytest.raises(InputError, match=f"{missing}' is missing"), Checkpoint.open(folder):
        pass

"""Tensors under transformers' names, streamed into a safetensors file a few rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.sources.gguf.families import LAYER, OUTER, Architecture
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile, TensorInfo, decode
from recycle_onnx.checkpoint.sources.gguf.rope import FREQUENCIES
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.safetensors_file import SIZES, Stream, bytes_of, content, write_streams

BYTES_AT_ONCE = 4 << 20
"""Of float32 values that are decoded in one piece: memory stays small, whatever the matrix."""
KEPT = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Types that are kept; whatever else is dequantized to float32, in which nothing is lost."""


@dataclass(frozen=True)
class Renamed:
    """A tensor with its name in transformers, and what undoes llama.cpp's changes to it."""

    name: str
    tensor: TensorInfo
    rows: NDArray[np.intp] | None = None
    offset: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether its bytes stay as they are."""
        return self.tensor.type in KEPT and not self.offset

    @property
    def type(self) -> str:
        """The tensor's type in safetensors."""
        return self.tensor.type if self.kept else "F32"

    @property
    def bytes(self) -> int:
        """The tensor's size in safetensors."""
        return prod(self.tensor.shape) * SIZES[self.type]


def rename(file: GgufFile, family: Architecture, config: dict[str, Any]) -> list[Renamed]:
    """Return every tensor of the file under its new name.

    Raises:
        InputError: one is missing, is not of this family, has another shape than the config implies, or is a vector in
            blocks.
    """
    expected = _names(family, config)
    for name in expected:
        if name not in file.tensors and name != "output.weight":
            raise InputError(f"{file.path}: tensor {name!r} is missing; the file is damaged or of another kind")
    for name in file.tensors.keys() - expected.keys() - {FREQUENCIES}:
        raise InputError(f"{file.path}: tensor {name!r} is not known in a {family.model_type}; that is not supported")
    present = {old: new for old, new in expected.items() if old in file.tensors}
    return [_renamed(file, family, config, file.tensors[old], new) for old, new in present.items()]


def _names(family: Architecture, config: dict[str, Any]) -> dict[str, str]:
    """Map llama.cpp's names to transformers'."""
    biases = set(family.biases)
    if family.model_type == "llama":
        biases |= {stem for stem in LAYER if stem.startswith("attn_") and config["attention_bias"]} - {"attn_norm"}
        biases |= {stem for stem in LAYER if stem.startswith("ffn_") and config["mlp_bias"]} - {"ffn_norm"}
    names = {f"{old}.weight": f"{new}.weight" for old, new in OUTER.items()}
    for index in range(config["num_hidden_layers"]):
        for old, new in family.layer.items():
            names[f"blk.{index}.{old}.weight"] = f"model.layers.{index}.{new}.weight"
            if old in biases:
                names[f"blk.{index}.{old}.bias"] = f"model.layers.{index}.{new}.bias"
    return names


def _renamed(file: GgufFile, family: Architecture, config: dict[str, Any], tensor: TensorInfo, name: str) -> Renamed:
    rows = None
    if len(tensor.shape) == 1 and tensor.type not in KEPT:
        raise InputError(f"{file.path}: {tensor.name} is a vector in {tensor.type}; expected F32, F16 or BF16")
    if family.rotated_pairs and ".attn_q." in tensor.name:
        rows = _halves_from_pairs(file, tensor, config["num_attention_heads"], config["head_dim"])
    elif family.rotated_pairs and ".attn_k." in tensor.name:
        rows = _halves_from_pairs(file, tensor, config["num_key_value_heads"], config["head_dim"])
    return Renamed(name, tensor, rows, family.norm_offset if name.endswith("norm.weight") else 0.0)


def _halves_from_pairs(file: GgufFile, tensor: TensorInfo, heads: int, head_dim: int) -> NDArray[np.intp]:
    """Return which row of the file each row of transformers' q or k is."""
    if tensor.shape[0] != heads * head_dim:
        raise InputError(
            f"{file.path}: {tensor.name} has {tensor.shape[0]} rows; the keys imply {heads} heads of {head_dim}"
        )
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def raw_rows(file: GgufFile, tensor: Renamed, rows: slice) -> NDArray[np.uint8]:
    """Return some rows of a tensor as the file has them, in transformers' order: [rows, bytes a row]."""
    raw = _by_row(file, tensor)
    return np.ascontiguousarray(raw[rows] if tensor.rows is None else raw[tensor.rows[rows]])


def read_rows(file: GgufFile, tensor: Renamed, rows: slice) -> NDArray[Any]:
    """Read some rows of a tensor as [rows, values a row], in the type it is kept in.

    bfloat16 is ml_dtypes' type.
    """
    bytes_, kind = raw_rows(file, tensor, rows), tensor.tensor.type
    return bytes_.view(KEPT[kind]) if tensor.kept else decode(bytes_, kind) - np.float32(tensor.offset)


def write_safetensors(path: Path, file: GgufFile, tensors: list[Renamed], progress: Progress = silent) -> None:
    """Write `tensors` a few rows at a time; `progress` is told how many of them are written, and which comes."""
    write_streams(path, _streams(file, tensors, progress))
    progress(len(tensors), len(tensors), "")


def digest_of_copy(file: GgufFile, tensors: list[Renamed]) -> str:
    """Return the SHA-256 of the file that `write_safetensors` would write."""
    digest = hashlib.sha256()
    for piece in content(_streams(file, tensors, silent)):
        digest.update(piece)
    return digest.hexdigest()


def _streams(file: GgufFile, tensors: list[Renamed], progress: Progress) -> dict[str, Stream]:
    written = count()

    def pieces(tensor: Renamed) -> Iterator[memoryview]:
        progress(next(written), len(tensors), tensor.name)
        for rows in _some_rows(file, tensor):
            yield bytes_of(read_rows(file, tensor, rows))

    return {tensor.name: Stream(tensor.type, tensor.tensor.shape, pieces(tensor)) for tensor in tensors}


def _by_row(file: GgufFile, tensor: Renamed) -> NDArray[np.uint8]:
    """Return the file's bytes as [rows, bytes a row]; of a vector each value is a row."""
    raw, shape = file.raw(tensor.tensor), tensor.tensor.shape
    return raw if len(shape) > 1 else raw.reshape(shape[0], -1)


def _some_rows(file: GgufFile, tensor: Renamed) -> Iterator[slice]:
    """Yield all rows in order, so many at a time that memory stays bounded."""
    total = len(_by_row(file, tensor))
    step = max(1, BYTES_AT_ONCE * total // (4 * prod(tensor.tensor.shape)))
    return (slice(start, start + step) for start in range(0, total, step))

"""The weights of a GGUF file as a base reads them: dequantized tensor by tensor, with no copy on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.sources.gguf.base import GgufBase
from recycle_onnx.checkpoint.sources.gguf.integers import LAYOUTS, read_integers
from recycle_onnx.checkpoint.sources.gguf.tensors import Renamed, digest_of_copy, raw_rows, read_rows, write_safetensors
from recycle_onnx.checkpoint.weights import ALL, Weights, joint_digest
from recycle_onnx.errors import InputError
from recycle_onnx.provenance import record_copy


class GgufWeights(Weights):
    """The tensors of a GGUF file under transformers' names, without llama.cpp's changes to them.

    F32, F16 and BF16 are read as they are, whatever else as float32.
    """

    def __init__(self, path: Path) -> None:
        """Read the file's header.

        Raises:
            InputError: not a GGUF file, a damaged one, or one that is not supported.
        """
        super().__init__([path])
        base = GgufBase.read(path)
        self._file = base.file
        self._tensors = {tensor.name: tensor for tensor in base.tensors}

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._tensors[name].tensor.shape

    def stored_type(self, name: str | None = None) -> str:
        """Return the type that a tensor (the first one) is read in: F32, F16 or BF16."""
        return self._tensors[name or next(iter(self._tensors))].type

    def integer_type(self, name: str) -> str | None:
        """Return the tensor's type in the file, where that is integers with scales and minima."""
        kind = self._tensors[name].tensor.type
        return kind if kind in LAYOUTS else None

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read the tensor's blocks, or those of some of its rows.

        Raises:
            InputError: a scale or minimum is not finite.
        """
        tensor = self._tensors[name]
        read = read_integers(raw_rows(self._file, tensor, rows), tensor.tensor.type)
        assert read is not None
        if not all(np.isfinite(part).all() for part in (read.scales, read.minima) if part is not None):
            raise InputError(f"{self.where}: {name} holds values that are not finite; the weights are damaged")
        return read

    def copy_to(self, folder: Path) -> None:
        """Write `model.safetensors` into `folder`, dequantized a few rows at a time, and record it in `source.json`."""
        copy = folder / "model.safetensors"
        write_safetensors(copy, self._file, self._listed())
        record_copy(folder, copy)

    def has_digest(self, digest: str) -> bool:
        """Tell whether the digest is that of the file, or of its copy as safetensors, which has the same values."""
        return super().has_digest(digest) or digest == joint_digest([digest_of_copy(self._file, self._listed())])

    def _listed(self) -> list[Renamed]:
        return list(self._tensors.values())

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        tensor = self._tensors[name]
        values = read_rows(self._file, tensor, rows)
        return values.reshape(-1, *tensor.tensor.shape[1:])

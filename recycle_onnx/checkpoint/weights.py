"""Safetensors files, read one tensor at a time from the memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 -- registers bfloat16, which safetensors needs to hand it to numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from recycle_onnx.checkpoint.base import Shapes
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256

FLOAT_TYPES = ("F32", "F16", "BF16")


class Weights:
    """The tensors of one safetensors file, or of the shards that an index lists."""

    def __init__(self, files: list[Path]) -> None:
        """Open the files.

        Raises:
            InputError: a file is missing, truncated or not safetensors.
        """
        self.files = files
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        for path in files:
            handle = self._open(path)
            self._handles |= dict.fromkeys(handle.keys(), handle)

    @classmethod
    def find(cls, folder: Path) -> Weights:
        """Open `model.safetensors`, or the shards of `model.safetensors.index.json`, in `folder`."""
        index = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").exists() or not index.exists():
            return cls([folder / "model.safetensors"])
        mapping = read_json(index).get("weight_map")
        if not isinstance(mapping, Mapping) or not mapping:
            raise InputError(f"{index}: expected a 'weight_map' that names the shards")
        return cls([folder / name for name in sorted(set(mapping.values()))])

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="numpy"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; expected the weights as safetensors") from error
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged or not safetensors ({error}); fetch or write it again") from error

    def close(self) -> None:
        """Unmap the files."""
        self._handles.clear()
        self._stack.close()

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._handles)

    def num_parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(int(np.prod(self._slice(name).get_shape())) for name in self._handles)

    def check(self, expected: Shapes) -> None:
        """Compare names, shapes and types with what the config implies.

        Raises:
            InputError: names the first tensor that is missing, or has another shape or type.
        """
        where = self.files[0] if len(self.files) == 1 else self.files[0].parent
        for name, shape in expected.items():
            if name not in self._handles:
                raise InputError(f"{where}: tensor {name!r} is missing; the config implies one of shape {list(shape)}")
            found = tuple(self._slice(name).get_shape())
            if found != shape:
                raise InputError(f"{where}: {name} has shape {list(found)}; the config implies {list(shape)}")
            if (kind := self._slice(name).get_dtype()) not in FLOAT_TYPES:
                raise InputError(f"{where}: {name} is stored as {kind}; expected one of {', '.join(FLOAT_TYPES)}")

    def stored(self, name: str) -> NDArray[Any]:
        """One tensor in the type it is stored in (bfloat16 as ml_dtypes' type).

        Raises:
            InputError: a value is not finite.
        """
        array: NDArray[Any] = self._handles[name].get_tensor(name)
        if not np.isfinite(array).all():
            raise InputError(f"{self.files[0]}: {name} holds values that are not finite; the weights are damaged")
        return array

    def float32(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32; stored float32 values are not rounded."""
        return np.ascontiguousarray(self.stored(name), dtype=np.float32)

    def stored_type(self) -> str:
        """The type of the first tensor, in safetensors' words: F32, F16 or BF16."""
        return str(self._slice(next(iter(self._handles))).get_dtype())

    def digest(self) -> str:
        """SHA-256 over the files' own SHA-256, in the order of their names."""
        return hashlib.sha256("".join(sha256(path) for path in self.files).encode()).hexdigest()

    def _slice(self, name: str) -> Any:
        return self._handles[name].get_slice(name)

"""A head's tensors in memory, in the way that a module's file gives its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.weights import ALL


@dataclass(frozen=True)
class HeldTensors:
    """Tensors by name, in the type they were stored in."""

    arrays: Mapping[str, NDArray[Any]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.arrays[name].shape

    def float32(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Give a tensor, or some of its rows, as float32."""
        return np.ascontiguousarray(self.arrays[name][rows], dtype=np.float32)

    def integer_type(self, name: str) -> str | None:
        """Return None: heads are read in floats only."""
        return None

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Refuse: no tensor has an `integer_type`."""
        raise ValueError(f"{name} is not stored as integers")

"""A module's tensors with some that it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.weights import ALL, Tensors


@dataclass(frozen=True)
class Overlay:
    """Tensors of which some lie above the others."""

    below: Tensors
    above: Mapping[str, NDArray[np.float32]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.above[name].shape if name in self.above else self.below.shape(name)

    def float32(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Give a tensor, or some of its rows."""
        return self.above[name][rows] if name in self.above else self.below.float32(name, rows)

    def integer_type(self, name: str) -> str | None:
        """Return what the tensor's small integers are called, if it has such."""
        return None if name in self.above else self.below.integer_type(name)

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read a tensor that has an `integer_type`."""
        return self.below.integers(name, rows)

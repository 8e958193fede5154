"""Keys and values of one half, in buffers that are past and present at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import GraphSpec

FIRST_CAPACITY = 256


class KVCache:
    """Buffers [1, K, capacity, D] that grow as the text grows, and a mask that tells how much is valid.

    Rolling back is shortening: rows beyond `length` are overwritten by the next run.
    """

    def __init__(self, spec: GraphSpec, limit: int) -> None:
        self.limit = limit
        self.capacity = min(FIRST_CAPACITY, limit)
        self.length = 0
        self._names = list(zip(spec.past_names(), spec.present_names(), strict=True))
        shape = (1, spec.num_kv_heads, self.capacity, spec.head_dim)
        self.arrays: list[NDArray[Any]] = [np.zeros(shape, spec.float_type) for _ in self._names]
        self._wrap()

    def _wrap(self) -> None:
        self.mask = np.zeros((1, self.capacity), np.int64)
        self.mask[0, : self.length] = 1
        # An OrtValue made from numpy aliases the array, and does not keep it alive: `arrays` and `mask` do.
        self._values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]
        self._mask_value = ort.OrtValue.ortvalue_from_numpy(self.mask)

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind mask, past and present; to be repeated after `reserve` has grown the buffers."""
        binding.bind_ortvalue_input("attention_mask", self._mask_value)
        for (past, present), value in zip(self._names, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def reserve(self, rows: int) -> bool:
        """Make room for `rows` tokens, doubling the buffers; tell whether they are new ones."""
        if rows <= self.capacity:
            return False
        while self.capacity < rows:
            self.capacity = min(2 * self.capacity, self.limit)
        self.arrays = [self._grown(array) for array in self.arrays]
        self._wrap()
        return True

    def _grown(self, array: NDArray[Any]) -> NDArray[Any]:
        larger = np.zeros((1, array.shape[1], self.capacity, array.shape[3]), array.dtype)
        larger[:, :, : self.length] = array[:, :, : self.length]
        return larger

    def set_length(self, length: int) -> None:
        """Say how many rows are valid, counting those that the next run writes."""
        if length > self.length:
            self.mask[0, self.length : length] = 1
        else:
            self.mask[0, length : self.length] = 0
        self.length = length

    def rows(self) -> list[NDArray[Any]]:
        """Keys and values [K, length, D] of the valid rows, in the contract's order; they alias the buffers."""
        return [array[0, :, : self.length] for array in self.arrays]

    def restore(self, past: list[NDArray[Any]]) -> None:
        """Copy keys and values that `rows` gave into buffers that have room for them."""
        for array, rows in zip(self.arrays, past, strict=True):
            array[0, :, : rows.shape[1]] = rows
        self.set_length(past[0].shape[1])

    def close(self) -> None:
        """Let go of the buffers."""
        self.arrays, self._values = [], []

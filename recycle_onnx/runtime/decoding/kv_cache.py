"""Keys and values of one half, in buffers that are past and present at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import ATTENTION_MASK, CacheType, GraphSpec
from recycle_onnx.runtime.ort.memory import HOST, Array, Buffer, Memory

FIRST_CAPACITY = 256
"""Rows to begin with: most texts fit, and longer ones double the buffers, so that copying stays a small part of the
work."""
SPARE = 1
"""A row behind the text: there a graph may put one that makes a run on one token round as longer ones do."""
INT8_STEP = 128
"""Rows that buffers of integers grow by at least, and a sixteenth of what they have: a step of attention over integers
computes with all rows of a buffer, and to copy 4096 rows of 30 layers takes the time of one step. A multiple of the 64
that ONNX Runtime sums up at once, so that sums do not depend on it."""


class KVCache:
    """Key-value buffers [1, K, rows, D] that grow as the text grows, and a mask that tells how many rows are valid.

    They hold floats or integers, as the graph says.

    How many rows are valid is its owner's business: to roll back is to say a smaller number, and what lies beyond is
    overwritten by the next run. The mask is on the host always; the buffers are where the session wants them, and are
    copied only to grow, to be saved and to be restored.
    """

    def __init__(self, spec: GraphSpec, limit: int, places: Mapping[str, Memory] | None = None) -> None:
        """Allocate the first buffers.

        `limit` is the most rows; `places` say where each past input is to lie, on the host where they do not.
        """
        self.limit = limit
        self.capacity = min(FIRST_CAPACITY, limit)
        self._types = spec.cache_types()
        self._shown = 0  # ones in the mask
        self._spec = spec
        self._names = list(zip(spec.past_names(), spec.present_names(), strict=True))
        self._places = [(places or {}).get(past, HOST) for past, _ in self._names]
        self.buffers = [self._buffer(*placed) for placed in zip(self._places, self._types, strict=True)]
        self._make_mask()

    @property
    def arrays(self) -> list[Array]:
        """The buffers' content, in the contract's order; on the host they are the buffers themselves."""
        return [buffer.read() for buffer in self.buffers]

    @property
    def devices(self) -> dict[str, str]:
        """Where each buffer lies, as ONNX Runtime calls it (`cpu`, `cuda`, `webgpu`, …), by its input's name."""
        return {past: buffer.value.device_name() for (past, _), buffer in zip(self._names, self.buffers, strict=True)}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind mask, past and present; to be repeated after `reserve` has grown the buffers."""
        self.bind_mask(binding)
        for (past, present), buffer in zip(self._names, self.buffers, strict=True):
            binding.bind_ortvalue_input(past, buffer.value)
            binding.bind_ortvalue_output(present, buffer.value)

    def bind_mask(self, binding: ort.IOBinding) -> None:
        """Bind the mask alone: a session that wants it on a device copies it when it is bound."""
        binding.bind_ortvalue_input(ATTENTION_MASK, self._mask_value)

    def reserve(self, rows: int, used: int) -> bool:
        """Make room for `rows` tokens in larger buffers, and keep the first `used`; tell whether they are new."""
        if rows <= self.capacity:
            return False
        while self.capacity < rows:
            self.capacity = min(self._next_capacity(), self.limit)
        for index, placed in enumerate(zip(self._places, self._types, strict=True)):
            self.buffers[index] = self._grown(self.buffers[index], *placed, used)  # the old one is freed at once
        self._make_mask()
        return True

    def show(self, rows: int) -> None:
        """Make the mask show the first `rows`, counting those that the next run writes."""
        if rows > self._shown:
            self.mask[0, self._shown : rows] = 1
        else:
            self.mask[0, rows : self._shown] = 0
        self._shown = rows

    def rows(self, count: int) -> list[NDArray[Any]]:
        """Give keys and values [K, count, D] of the first rows, in the contract's order; on the host, aliases."""
        return [array[0, :, :count] for array in self.arrays]

    def restore(self, past: list[NDArray[Any]], start: int = 0) -> None:
        """Copy keys and values that `rows` gave into buffers that have room for them behind `start` rows."""
        for buffer, rows in zip(self.buffers, past, strict=True):
            buffer.write_rows(rows[None], start)

    def close(self) -> None:
        """Let go of the buffers."""
        self.buffers = []

    def _next_capacity(self) -> int:
        if self._spec.cache_type is None:
            return 2 * self.capacity
        return self.capacity + max(INT8_STEP, self.capacity // 16 // INT8_STEP * INT8_STEP)

    def _rows(self) -> int:
        """Return the rows of a buffer: the last token that a context has room for is never read."""
        if self._spec.cache_type is None:
            return min(self.capacity + SPARE, self.limit)
        return -(-self.capacity // INT8_STEP) * INT8_STEP

    def _buffer(self, place: Memory, dtype: CacheType) -> Buffer:
        return place.zeros((1, self._spec.num_kv_heads, self._rows(), self._spec.head_dim), dtype)

    def _grown(self, buffer: Buffer, place: Memory, dtype: CacheType, used: int) -> Buffer:
        larger = self._buffer(place, dtype)
        larger.write_rows(buffer.read()[:, :, :used])
        return larger

    def _make_mask(self) -> None:
        self.mask, self._shown = np.zeros((1, self.capacity), np.int64), 0
        self._mask_value = ort.OrtValue.ortvalue_from_numpy(self.mask)  # an alias, that `mask` keeps alive

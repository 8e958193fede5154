"""Keys and values of one half, in buffers that are past and present at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import ATTENTION_MASK, GraphSpec
from recycle_onnx.runtime.ort.memory import HOST, Array, Buffer, Memory

FIRST_CAPACITY = 256
"""Rows to begin with: most texts fit, and longer ones double the buffers, so that copying stays a small part of the
work."""
SPARE = 1
"""A row behind the text: there a graph may put one that makes a run on one token round as longer ones do."""


class KVCache:
    """Key-value buffers [1, K, rows, D] that grow as the text grows, and a mask that tells how many rows are valid.

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
        self._shown = 0  # ones in the mask
        self._spec = spec
        self._names = list(zip(spec.past_names(), spec.present_names(), strict=True))
        self._places = [(places or {}).get(past, HOST) for past, _ in self._names]
        self.buffers = [self._buffer(place) for place in self._places]
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
        """Make room for `rows` tokens, doubling the buffers, and keep the first `used`; tell whether they are new."""
        if rows <= self.capacity:
            return False
        while self.capacity < rows:
            self.capacity = min(2 * self.capacity, self.limit)
        placed = zip(self.buffers, self._places, strict=True)
        self.buffers = [self._grown(buffer, place, used) for buffer, place in placed]
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

    def restore(self, past: list[NDArray[Any]]) -> None:
        """Copy keys and values that `rows` gave into buffers that have room for them."""
        for buffer, rows in zip(self.buffers, past, strict=True):
            buffer.write_rows(rows[None])

    def close(self) -> None:
        """Let go of the buffers."""
        self.buffers = []

    def _buffer(self, place: Memory) -> Buffer:
        rows = min(self.capacity + SPARE, self.limit)  # the last token that a context has room for is never read
        shape = (1, self._spec.num_kv_heads, rows, self._spec.head_dim)
        return place.zeros(shape, self._spec.float_type)

    def _grown(self, buffer: Buffer, place: Memory, used: int) -> Buffer:
        larger = self._buffer(place)
        larger.write_rows(buffer.read()[:, :, :used])
        return larger

    def _make_mask(self) -> None:
        self.mask, self._shown = np.zeros((1, self.capacity), np.int64), 0
        self._mask_value = ort.OrtValue.ortvalue_from_numpy(self.mask)  # an alias, that `mask` keeps alive

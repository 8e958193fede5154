"""Hidden states that the full model has made and the module has not read yet."""

from __future__ import annotations

import numpy as np

from recycle_onnx.contract import FloatType
from recycle_onnx.runtime.decoding.step_states import States

FIRST_ROOM = 64
"""Rows to begin with: those of a short prompt, or of the steps while `auto` leaves the module alone."""


class WaitingStates:
    """Rows [n, state_size] of neighbouring positions, the module's next one first, in a buffer that grows."""

    def __init__(self, width: int, dtype: FloatType) -> None:
        self._count = 0  # rows of the buffer that are filled
        self._buffer: States = np.empty((0, width), np.dtype(dtype))

    def __len__(self) -> int:
        return self._count

    def rows(self) -> States:
        """Give what waits; later states overwrite it."""
        return self._buffer[: self._count]

    def room(self, rows: int) -> States:
        """Give the next rows, to be filled."""
        end = self._count + rows
        if end > len(self._buffer):
            larger: States = np.empty(
                (max(FIRST_ROOM, end, 2 * self._count), self._buffer.shape[1]), self._buffer.dtype
            )
            larger[: self._count] = self.rows()
            self._buffer = larger
        space, self._count = self._buffer[self._count : end], end
        return space

    def cut(self, count: int) -> None:
        """Forget all but the first `count` rows."""
        self._count = min(self._count, max(0, count))

    def drop(self, count: int) -> None:
        """Forget the first `count` rows."""
        left = self._count - count
        self._buffer[:left] = self._buffer[count : self._count].copy()
        self._count = left

    def clear(self) -> None:
        """Forget everything, the memory too where there was much."""
        self._count = 0
        if len(self._buffer) > 4 * FIRST_ROOM:
            self._buffer = self._buffer[:0].copy()

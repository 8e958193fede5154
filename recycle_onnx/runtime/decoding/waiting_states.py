"""Hidden states that the full model has made and the module has not read yet."""

from __future__ import annotations

import numpy as np

from recycle_onnx.contract import FloatType
from recycle_onnx.runtime.decoding.half import States

FIRST_ROOM = 64


class WaitingStates:
    """Rows [n, state_size] of neighbouring positions from `first` on, in a buffer that grows."""

    def __init__(self, width: int, dtype: FloatType) -> None:
        self.dtype = np.dtype(dtype)
        self.first = 0
        self._count = 0
        self._buffer: States = np.empty((0, width), self.dtype)

    def __len__(self) -> int:
        return self._count

    def rows(self) -> States:
        """What waits; overwritten by later states."""
        return self._buffer[: self._count]

    def room(self, position: int, rows: int) -> States:
        """Rows to be filled with the states from `position` on; what does not stand just before it is forgotten."""
        if not self._count or position != self.first + self._count:
            self.first, self._count = position, 0
        end = self._count + rows
        if end > len(self._buffer):
            larger: States = np.empty((max(FIRST_ROOM, end, 2 * self._count), self._buffer.shape[1]), self.dtype)
            larger[: self._count] = self.rows()
            self._buffer = larger
        space, self._count = self._buffer[self._count : end], end
        return space

    def keep(self, start: int, end: int) -> int:
        """Forget all but positions `start` … `end` - 1; give the position up to which none of them is missing."""
        rows = self._buffer[start - self.first : max(0, min(self._count, end - self.first))]
        if start < self.first or end > self.first + self._count:
            rows, end = rows[:0], start
        rows = rows.copy()
        self.clear()
        self.room(start, len(rows))[:] = rows
        return end

    def clear(self) -> None:
        """Forget everything, the memory too where there was much."""
        self._count = 0
        if len(self._buffer) > 4 * FIRST_ROOM:
            self._buffer = self._buffer[:0].copy()

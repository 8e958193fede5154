"""Hidden states that a step has made: on the host, or on a device until the host asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.contract import FloatType
from recycle_onnx.runtime.ort.memory import HOST, Buffer, HostBuffer, Memory
from recycle_onnx.runtime.settings import LONGEST_CHAIN

States = NDArray[np.floating[Any]]
"""Hidden states [rows, H], several taps side by side [rows, n·H], in the bundle's float type."""
STEP_ROWS = 1 + LONGEST_CHAIN
"""Calls of up to this many tokens keep their buffers bound; longer ones are prefill, and are bound anew."""


class StepStates:
    """Rows [STEP_ROWS, state_size], of which the latest step has filled the first.

    A device has a buffer for each number of rows, since no tensor can be a part of another's memory there. The next
    graph reads it as it is, if it wants all its rows; otherwise, and for whoever calls `on_host`, the rows are copied.
    """

    def __init__(self, width: int, dtype: FloatType, made_in: Memory = HOST) -> None:
        """Allocate the rows on the host; `made_in` is where the graph that makes them can leave them."""
        self._array: States = np.zeros((STEP_ROWS, width), dtype)
        self._dtype: FloatType = dtype
        self._made_in = made_in
        self._memory: Memory = HOST  # where steps leave their rows: on the host until somebody asks for another place
        self._buffers: dict[int, Buffer] = {}  # by the number of rows; on a device only
        self._rows = 0  # of the latest step
        self._copied = True  # whether `_array` has the latest step's rows

    def share(self, memory: Memory) -> None:
        """Have later steps leave their states where the next graph reads them, if they are made there; else here."""
        self._memory = memory if memory == self._made_in else HOST

    def buffer(self, rows: int) -> Buffer:
        """Return the buffer [1, rows, state_size] that a step of so many rows is to write."""
        if self._memory.is_host:
            return HostBuffer(self._array[None, :rows])
        if rows not in self._buffers:
            self._buffers[rows] = self._memory.zeros((1, rows, self._array.shape[1]), self._dtype)
        return self._buffers[rows]

    def written(self, rows: int) -> None:
        """Say that a step has filled its buffer."""
        self._rows, self._copied = rows, self._memory.is_host

    def put(self, row: States) -> None:
        """Take a row [state_size] that a longer reading ended with for the latest step's only one."""
        self._array[0] = row
        self.written(1)
        self._copied = True

    def last(self) -> States:
        """Give the latest step's last row [state_size], on the host."""
        row: States = self.on_host()[self._rows - 1]
        return row

    def on_device(self, rows: int) -> Buffer | None:
        """Return the latest step's states where they lie on a device and are so many; else None."""
        return self._buffers.get(rows) if rows == self._rows else None

    def on_host(self) -> States:
        """Return the rows, copied from the device if that has not been done."""
        if not self._copied:
            self._array[: self._rows] = self._buffers[self._rows].read()[0]
            self._copied = True
        return self._array

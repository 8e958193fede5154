"""Keys and values of one half, in buffers that are past and present at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import ATTENTION_MASK, BYTES, DROPPED_ROWS, GraphSpec
from recycle_onnx.runtime.decoding.window_rows import WindowRows
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


def always() -> bool:
    """Let rows be dropped."""
    return True


class KVCache:
    """Key-value buffers [1, K, rows, D] that grow as the text grows, and a mask that tells how many rows are valid.

    They hold floats or integers, as the graph says. Those of layers with a window grow to what the window needs, and
    drop their oldest rows then: the first row that they have is that of token `dropped`. `window` says which rows they
    keep, None where all do. `may_drop` is asked before the first are dropped: where it says no, all are kept.

    How many rows are valid is its owner's business: to roll back is to say a smaller number, and what lies beyond is
    overwritten by the next run. The mask is on the host always; the buffers are where the session wants them, and are
    copied only to grow, to be saved and to be restored.
    """

    def __init__(
        self, spec: GraphSpec, limit: int, places: Mapping[str, Memory] | None = None, *, drops_rows: bool = True
    ) -> None:
        """Allocate the first buffers.

        `limit` is the most tokens; `places` say where each past input is to lie, on the host where they do not. Unless
        it `drops_rows`, buffers of all layers keep every one.
        """
        self.limit = limit
        self.capacity = self._window_capacity = min(FIRST_CAPACITY, limit)
        self._types = spec.cache_types()
        self._shown = 0  # ones in the mask
        self._spec = spec
        self.window = WindowRows.of(spec) if drops_rows else None
        self.may_drop: Callable[[], bool] = always
        self._has_window = spec.has_window()
        self._dropped = np.array(0, np.int64)
        self._dropped_value = ort.OrtValue.ortvalue_from_numpy(self._dropped)  # an alias, that `_dropped` keeps alive
        self._names = list(zip(spec.past_names(), spec.present_names(), strict=True))
        self._places = [(places or {}).get(past, HOST) for past, _ in self._names]
        self.buffers = [self._buffer(index, self.capacity) for index in range(len(self._names))]
        self._make_mask()

    @property
    def dropped(self) -> int:
        """The first tokens of the text of which layers with a window have no rows."""
        return 0 if self.window is None else self.window.first

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        sizes = zip(self.buffers, self._types, strict=True)
        return sum(math.prod(buffer.value.shape()) * BYTES[dtype] for buffer, dtype in sizes)

    @property
    def arrays(self) -> list[Array]:
        """The buffers' content, in the contract's order; on the host they are the buffers themselves."""
        return [buffer.read() for buffer in self.buffers]

    @property
    def devices(self) -> dict[str, str]:
        """Where each buffer lies, as ONNX Runtime calls it (`cpu`, `cuda`, `webgpu`, …), by its input's name."""
        return {past: buffer.value.device_name() for (past, _), buffer in zip(self._names, self.buffers, strict=True)}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind mask, past and present; to be repeated whenever `reserve` or `make_room` have changed them."""
        self.bind_mask(binding)
        if self.window is not None:
            self._dropped[...] = self.dropped  # all that is bound was bound since it changed
            binding.bind_ortvalue_input(DROPPED_ROWS, self._dropped_value)
        for (past, present), buffer in zip(self._names, self.buffers, strict=True):
            binding.bind_ortvalue_input(past, buffer.value)
            binding.bind_ortvalue_output(present, buffer.value)

    def bind_mask(self, binding: ort.IOBinding) -> None:
        """Bind the mask alone: a session that wants it on a device copies it when it is bound."""
        binding.bind_ortvalue_input(ATTENTION_MASK, self._mask_value)

    def drops_rows(self) -> bool:
        """Tell whether rows may be dropped."""
        return self.window is not None and self.may_drop()

    def keep_all_rows(self, used: int = 0) -> None:
        """Drop nothing from now on; to be called before any row is dropped of the `used` ones that are there."""
        for index in range(len(self.buffers)):
            if self._is_short(index) and self.capacity > self._window_capacity:
                self.buffers[index] = self._grown(index, self.capacity, used)
        self.window, self._window_capacity = None, self.capacity

    def has_enough(self, length: int) -> bool:
        """Tell whether a token behind the first `length` finds all rows that it sees."""
        return self.window is None or self.window.are_enough(length)

    def reserve(self, rows: int, used: int) -> bool:
        """Make room for `rows` tokens of which `used` are there, in buffers with a window as much as they ever need.

        Returns:
            Whether what is bound has changed.
        """
        most = None if self.window is None else self.window.most
        return self._enlarge(rows, used, most)

    def make_room(self, rows: int, used: int) -> bool:
        """Make room for a run behind the `used` tokens that are there, to `rows` in all; old rows may be dropped.

        Returns:
            Whether what is bound has changed.

        Raises:
            RuntimeError: rows that the run sees were dropped; whoever goes back so far has to read the text again.
        """
        dropped = rows - self.dropped > self._window_capacity and self._drop(used)
        if not self.has_enough(used):
            raise RuntimeError(
                f"{used} tokens are kept, and layers with a window have rows from {self.dropped} on only"
            )
        return self._enlarge(rows, used) or dropped

    def forget(self, first: int = 0) -> bool:
        """Forget all rows; the next ones, in buffers with a window, are those of token `first` on.

        Returns:
            Whether what is bound has changed.
        """
        if self.window is None or self.window.first == first:
            return False
        self.window.first = first
        return True

    def pass_over(self, rows: int) -> bool:
        """Take the first `rows` for there, whatever the buffers hold; only for graphs whose layers all have a window.

        Returns:
            Whether what is bound has changed.
        """
        moved = self.window is not None and self.forget(self.window.needed(rows))
        return self._enlarge(rows, 0) or moved

    def show(self, rows: int) -> None:
        """Make the mask show the first `rows`, counting those that the next run writes."""
        if rows > self._shown:
            self.mask[0, self._shown : rows] = 1
        else:
            self.mask[0, rows : self._shown] = 0
        self._shown = rows

    def rows(self, count: int) -> list[NDArray[Any]]:
        """Give keys and values [K, n, D] of the first `count` tokens, in the contract's order; on the host, aliases.

        n is `count`, and without the `dropped` ones for layers with a window.
        """
        return [array[0, :, : count - self._first(index)] for index, array in enumerate(self.arrays)]

    def restore(self, past: list[NDArray[Any]], count: int, start: int = 0, dropped: int = 0) -> bool:
        """Copy keys and values that `rows` gave of the tokens `start` … `count` - 1, behind those that are there.

        Where `start` is 0, layers with a window may have `dropped` rows.

        Returns:
            Whether what is bound has changed.
        """
        moved = False if start else self.forget(max(dropped, self._first_needed(count, 0)))
        changed = (self.make_room(count, start) if start else self._enlarge(count, 0)) or moved
        for index, (buffer, rows) in enumerate(zip(self.buffers, past, strict=True)):
            begins = count - rows.shape[1]  # the token of the first row
            wanted = max(begins, self._first(index))
            buffer.write_rows(rows[None, :, wanted - begins :], wanted - self._first(index))
        return changed

    def close(self) -> None:
        """Let go of the buffers."""
        self.buffers = []

    def share_buffers(self, rows: int) -> None:
        """Make room for `rows` tokens in buffers that layers share: one for keys and one for values of each size.

        For trials, to which a row's content means nothing: a layer reads its own row as it wrote it, and those of
        earlier tokens as the last layer did. A text's own buffers may take gigabytes.
        """
        self.reserve(rows, 0)  # of zeros, which take no memory before they are written
        kinds = [(index % 2, self._is_short(index)) for index in range(len(self.buffers))]
        shared = dict(zip(kinds, self.buffers, strict=True))
        self.buffers = [shared[kind] for kind in kinds]

    def _is_short(self, index: int) -> bool:
        """Tell whether a buffer drops rows."""
        return self.window is not None and self._has_window[index]

    def _first(self, index: int) -> int:
        """Return the token of a buffer's first row."""
        return self.dropped if self._is_short(index) else 0

    def _first_needed(self, length: int, used: int) -> int:
        """Return the first row to keep of a text of `length` tokens, of which `used` are there."""
        first = 0 if self.window is None else self.window.needed(length)
        if first and not self.dropped and not self.may_drop():
            self.keep_all_rows(used)
            return 0
        return first

    def _drop(self, used: int) -> bool:
        """Move the rows that are still needed to the front of buffers with a window.

        Returns:
            Whether what is bound has changed, also since it was decided that all rows are kept.
        """
        window, first = self.window, self._first_needed(used, used)
        if window is None or first <= self.dropped:
            return self.window is not window
        rows = slice(first - self.dropped, used - self.dropped)
        window.first = used  # if this is interrupted, none of them can be relied on
        for index, buffer in enumerate(self.buffers):
            if self._is_short(index):
                buffer.write_rows(buffer.read()[:, :, rows].copy())
        window.first = first
        return True

    def _enlarge(self, rows: int, used: int, most: int | None = None) -> bool:
        """Allocate larger buffers where they have no room for `rows` tokens, and copy the `used` rows.

        Those with a window need no more than `most` rows.
        """
        capacity, window_capacity = self._sufficient(self.capacity, rows, self.limit), self._window_capacity
        if self.window is not None:
            wanted = rows - self.dropped if most is None else min(rows - self.dropped, most)
            window_capacity = self._sufficient(window_capacity, wanted, max(wanted, min(self.window.most, self.limit)))
        for index in range(len(self.buffers)):
            old, new = (self._window_capacity, window_capacity) if self._is_short(index) else (self.capacity, capacity)
            if new > old:
                self.buffers[index] = self._grown(index, new, used)  # the old one is freed at once
        grown, shorter_grown = capacity > self.capacity, window_capacity > self._window_capacity
        self.capacity, self._window_capacity = capacity, window_capacity
        if grown:
            self._make_mask()
        return grown or shorter_grown

    def _sufficient(self, capacity: int, rows: int, most: int) -> int:
        """Return a capacity for so many rows, from steps that make copying a small part of the work."""
        while capacity < rows:
            by = max(INT8_STEP, capacity // 16 // INT8_STEP * INT8_STEP) if self._spec.cache_type else capacity
            capacity = min(capacity + by, most)
        return capacity

    def _grown(self, index: int, capacity: int, used: int) -> Buffer:
        larger = self._buffer(index, capacity)
        larger.write_rows(self.buffers[index].read()[:, :, : max(0, used - self._first(index))])
        return larger

    def _buffer(self, index: int, capacity: int) -> Buffer:
        """Allocate a buffer: the last token that a context has room for is never read, and needs no row."""
        rows = min(capacity + SPARE, self.limit)
        if self._spec.cache_type is not None:
            rows = -(-capacity // INT8_STEP) * INT8_STEP
        shape = (1, self._spec.num_kv_heads, rows, self._spec.head_dim)
        return self._places[index].zeros(shape, self._types[index])

    def _make_mask(self) -> None:
        self.mask, self._shown = np.zeros((1, self.capacity), np.int64), 0
        self._mask_value = ort.OrtValue.ortvalue_from_numpy(self.mask)  # an alias, that `mask` keeps alive

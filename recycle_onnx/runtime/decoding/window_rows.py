"""Which rows the buffers of layers with a window keep: those that the next token sees, and some to go back into."""

from __future__ import annotations

from dataclasses import dataclass

from recycle_onnx.contract import GraphSpec
from recycle_onnx.machine import second_level_cache

SPARE_ROWS = 1024
"""Rows that are kept beyond those that the next token sees: an answer can be taken back that far, with the question
before it, and nothing has to be read again. Behind 4096 tokens they are a quarter of what all rows would take."""
RUN_ROWS = 256
"""Most rows of a run that there is room for beside those that are kept, as a prompt is read; longer ones take more."""
LEAST_SUMMED, MOST_SUMMED = 1 << 15, 1 << 17
"""Values of a head that rows are dropped by: as many as ONNX Runtime sums up at once of probabilities times values, or
a multiple. So a token's sums begin where they would have begun, and come out the same to the bit. GroupQueryAttention
sums up a 32nd of the second-level cache's bytes, and matrix products up to `LEAST_SUMMED`. Where nobody tells how large
the cache is, the most that it may be divided into are taken, which suits those of 256 kB to 4 MB that are a power of
two."""
INT8_SUMMED = 128
"""Rows that buffers of integers are dropped by, of which 64 are summed up at once."""


@dataclass
class WindowRows:
    """Rows of layers that see `window` of them: those from `first` on are kept, and dropped `step` at a time."""

    window: int
    step: int
    first: int = 0

    @classmethod
    def of(cls, spec: GraphSpec) -> WindowRows | None:
        """Return those of a graph; None where no layer has a window."""
        if spec.widest_window is None:
            return None
        return cls(spec.widest_window, INT8_SUMMED if spec.cache_type else max(1, summed() // spec.head_dim))

    @property
    def most(self) -> int:
        """Rows that buffers need at most, so that old ones are dropped once in `step` tokens."""
        return self.window - 1 + SPARE_ROWS + self.step - 1 + RUN_ROWS

    def are_enough(self, length: int) -> bool:
        """Tell whether all that the next token sees of `length` tokens is kept."""
        return not self.first or length - (self.window - 1) >= self.first

    def needed(self, length: int) -> int:
        """Return the first row to keep of a text of `length` tokens."""
        return max(0, length - (self.window - 1) - SPARE_ROWS) // self.step * self.step


def summed() -> int:
    """Return the values of a head that rows are dropped by on this machine."""
    size = second_level_cache.size()
    return MOST_SUMMED if size is None else min(max(LEAST_SUMMED, size // 32), MOST_SUMMED)


def cache_bytes(spec: GraphSpec, tokens: int) -> int:
    """Count the bytes that keys and values of a text of so many tokens take."""
    rows = WindowRows.of(spec)
    short = tokens if rows is None else min(tokens, rows.most)
    taken = [short if has_window else tokens for has_window in spec.has_window()]
    return spec.row_bytes * sum(taken) // max(1, len(taken))

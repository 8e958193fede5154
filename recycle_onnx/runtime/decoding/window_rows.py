"""Which rows the buffers of layers with a window keep: those that the next token sees, and some to go back into."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recycle_onnx.contract import GraphSpec
from recycle_onnx.machine import second_level_cache

ROWS_BACK = 1024
"""Rows that are kept beyond those that the next token sees: an answer can be taken back that far, with the question
before it, and nothing has to be read again. Behind 4096 tokens they are a quarter of what all rows would take."""
RUN_ROWS = 256
"""Most rows of a run that there is room for beside those that are kept, as a prompt is read; longer ones take more."""
LEAST_SUMMED, PRESUMED_SIZE = 1 << 15, 1 << 22
"""Values of a head that a step has at least, and bytes of a second-level cache whose size nobody tells: where it and
the width of heads are powers of two, this suits all from 256 kB to 4 MB.

GroupQueryAttention multiplies probabilities and values block by block, and its blocks take a 32nd of that cache. Rows
are dropped by whole blocks, so that a token's sums begin where they would have begun."""
ROWS_OF_A_SUM = 4
"""Rows that a run on one token sums up at once. Blocks of 341 and 409 rows, of heads of 96 and 80 values in a cache of
1 MB, gave other bits for some windows when one or two of them were dropped, and the same for four."""
STANDARD_STEP = 1024
"""Rows that are dropped at once for the operator Attention: matrix products sum up a power of two of them at once, 128
to 1024 by the width of a head."""
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
        return cls(spec.widest_window, step_of(spec))

    @property
    def most(self) -> int:
        """Rows that buffers need at most, so that old ones are dropped once in `step` tokens."""
        return self.window - 1 + ROWS_BACK + self.step - 1 + RUN_ROWS

    def are_enough(self, length: int) -> bool:
        """Tell whether all that the next token sees of `length` tokens is kept."""
        return not self.first or length - (self.window - 1) >= self.first

    def needed(self, length: int) -> int:
        """Return the first row to keep of a text of `length` tokens."""
        return max(0, length - (self.window - 1) - ROWS_BACK) // self.step * self.step


def step_of(spec: GraphSpec) -> int:
    """Return how many rows a graph's kernels let be dropped at once on this machine, with no bit changed."""
    if spec.cache_type is not None:
        return INT8_SUMMED
    if spec.flavour != "ort":
        return STANDARD_STEP
    block = max(1, (second_level_cache.size() or PRESUMED_SIZE) // 32 // spec.head_dim)
    unit = math.lcm(block, ROWS_OF_A_SUM)
    return unit * math.ceil(LEAST_SUMMED // spec.head_dim / unit)


def cache_bytes(spec: GraphSpec, tokens: int) -> int:
    """Count the bytes that keys and values of a text of so many tokens take."""
    rows = WindowRows.of(spec)
    short = tokens if rows is None else min(tokens, rows.most)
    taken = [short if has_window else tokens for has_window in spec.has_window()]
    return spec.row_bytes * sum(taken) // max(1, len(taken))

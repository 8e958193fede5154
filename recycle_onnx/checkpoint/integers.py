"""Matrices that a file has as blocks of small integers, whatever its format."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Integers(NamedTuple):
    """A quantized matrix [N, K], or some of its rows: value = scale · (code - zero) + minimum, block by block.

    `codes` u8 [N, K] are below `levels`; `scales` and `minima` f32 [N, B] belong to B blocks of K / B values. Where
    there are no `minima` they are 0. `zeros` u8 [N, B] take the place of `zero` where blocks have their own. `kind` is
    the file's name for it: `Q4_0`.
    """

    kind: str
    levels: int
    zero: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    minima: NDArray[np.float32] | None = None
    zeros: NDArray[np.uint8] | None = None

    @property
    def block_size(self) -> int:
        """The number of values that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def values(self) -> NDArray[np.float32]:
        """Return the matrix, as whoever reads the file computes with it."""
        rows, count = self.scales.shape
        zero = np.float32(self.zero) if self.zeros is None else self.zeros[..., None].astype(np.float32)
        centred = self.codes.reshape(rows, count, -1).astype(np.float32) - zero
        values = centred * self.scales[..., None]
        if self.minima is not None:
            values = values + self.minima[..., None]
        whole: NDArray[np.float32] = values.reshape(rows, -1)
        return whole

    def at(self, rows: NDArray[np.intp]) -> Integers:
        """Return some of the rows."""
        minima = None if self.minima is None else self.minima[rows]
        zeros = None if self.zeros is None else self.zeros[rows]
        return self._replace(codes=self.codes[rows], scales=self.scales[rows], minima=minima, zeros=zeros)

"""Matrices to blocks of 4-bit integers that leave the least error in what they are multiplied with.

GPTQ (Frantar et al., 2022) rounds one column after another, and lets the columns behind make up for the error. One
sweep of coordinate descent over codes and scales then takes what that left. All of it is numpy on transposed matrices
[K, N], whose rows lie together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.export.block_quantizer import RANGES, Blocks, Quantization, pack

Floats = NDArray[np.float32]

DAMPING = 0.002
"""Of the mean second moment, added to each. On 135 M parameters .002 is better than .01, and no Cholesky failed."""
SMALLEST_HALF = 128
"""Columns below which a triangular matrix is not inverted by halves: calls would take longer than the work."""
REFINEMENTS = 2
"""How often a block's scale is fitted to its codes, and the codes to the scale."""


class _Grid(NamedTuple):
    """The scales and zero points [N] of one block of every row."""

    scale: Floats
    zero: Floats


class _Rounded(NamedTuple):
    """A rounded matrix: codes [K, N], scales and zero points [K / block size, N]."""

    codes: Floats
    scales: Floats
    zeros: Floats


class Inputs(NamedTuple):
    """What is known of a matrix's inputs: their mean products `moments` f32 [K, K], damped, and `inverse_factor`'s U.

    An input that was never seen (a moment of 0) weighs as little as damping makes it.
    """

    moments: Floats
    upper: Floats

    @classmethod
    def of(cls, moments: Floats) -> Inputs:
        """Damp mean products in place, since of 5632 columns another copy takes 127 MB."""
        diagonal = np.diagonal(moments).astype(np.float64)
        diagonal += DAMPING * (float(diagonal.mean()) or 1.0)
        upper = inverse_factor(_in_float64(moments, diagonal))
        np.fill_diagonal(moments, diagonal)
        return cls(moments, upper)

    def divide(self, factors: Floats) -> None:
        """Divide the inputs by `factors` [K], in place."""
        self.moments[:] /= factors
        self.moments[:] /= factors[:, None]
        self.upper[:] *= factors


def quantize_by_moments(matrix: Floats, inputs: Inputs, how: Quantization) -> Blocks:
    """Quantize `matrix` [N, K], which is multiplied with `inputs`."""
    weights = np.ascontiguousarray(matrix.T, np.float32)
    importance = np.diagonal(inputs.moments).copy()  # in one piece: BLAS sums what lies apart in another order
    rounded = _gptq(weights, inputs.upper, importance, how)
    return _blocks(_descend(weights, inputs.moments, rounded, how), how)


def _gptq(weights: Floats, upper: Floats, importance: Floats, how: Quantization) -> _Rounded:
    size, (width, rows) = how.block_size, weights.shape
    left = weights.copy()
    codes = np.empty_like(weights)
    scales, zeros = (np.empty((width // size, rows), np.float32) for _ in range(2))
    for start in range(0, width, size):
        end = start + size
        grid = _fit(left[start:end], importance[start:end], how)
        scales[start // size], zeros[start // size] = grid
        errors = np.empty((size, rows), np.float32)
        for at in range(start, end):
            codes[at] = _codes(left[at], grid, how)
            error = (left[at] - (codes[at] - grid.zero) * grid.scale) / upper[at, at]
            left[at + 1 : end] -= upper[at, at + 1 : end, None] * error
            errors[at - start] = error
        left[end:] -= upper[start:end, end:].T @ errors
    return _Rounded(codes, scales, zeros)


def _in_float64(moments: Floats, diagonal: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = moments.astype(np.float64)
    np.fill_diagonal(matrix, diagonal)
    return matrix


def inverse_factor(moments: NDArray[np.float64]) -> Floats:
    """Return the upper triangular U with UᵀU = moments⁻¹.

    It is the inverse of R where RRᵀ = moments, R upper triangular.
    """
    reverse = np.linalg.cholesky(moments[::-1, ::-1])
    _invert_lower(reverse)
    return np.ascontiguousarray(reverse[::-1, ::-1], np.float32)


def _invert_lower(matrix: NDArray[np.floating[Any]]) -> None:
    """Invert a lower triangular matrix in place, by halves.

    `np.linalg.inv` knows nothing of the zeros: with 5632 columns the factor takes 13.5 seconds and 1.0 GB by it, and
    5.1 seconds and 0.5 GB so.
    """
    size = len(matrix)
    if size <= SMALLEST_HALF:
        matrix[:] = np.linalg.inv(matrix)
        return
    half = size // 2
    first, last, below = matrix[:half, :half], matrix[half:, half:], matrix[half:, :half]
    _invert_lower(first)
    _invert_lower(last)
    below[:] = -(last @ below @ first)


def _fit(block: Floats, importance: Floats, how: Quantization) -> _Grid:
    """Find for each row of `block` [block size, N] the range that leaves the least weighted error."""
    best, chosen = _tried(block, importance, how, 1.0)
    for part in RANGES:
        error, grid = _tried(block, importance, how, part)
        better = error < best
        best = np.where(better, error, best)
        chosen = _Grid(*(np.where(better, new, old) for new, old in zip(grid, chosen, strict=True)))
    return _Grid(np.where(chosen.scale == 0, np.float32(1), chosen.scale), chosen.zero)


def _tried(block: Floats, importance: Floats, how: Quantization, part: float) -> tuple[Floats, _Grid]:
    top, middle = (1 << how.bits) - 1, 1 << (how.bits - 1)
    low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
    part32 = np.float32(part)
    if how.symmetric:
        scale = _no_zero(np.where(high > -low, high, low) * (-part32 / middle))
        zero = np.full_like(scale, middle)
    else:
        scale = _no_zero((high - low) * (part32 / top))
        zero = np.clip(np.rint(-part32 * low / scale), 0, top)
    weighted = importance[:, None] * block
    for _ in range(REFINEMENTS):
        centred = _codes(block, _Grid(scale, zero), how) - zero
        power = importance @ np.square(centred)
        scale = np.where(power > 0, (weighted * centred).sum(0) / np.where(power > 0, power, 1), scale)
        scale = _no_zero(scale)
    error = importance @ np.square(scale * centred - block)
    return error, _Grid(scale, zero)


def _no_zero(scale: Floats) -> Floats:
    return np.where(scale == 0, np.float32(1), scale)


def _codes(values: Floats, grid: _Grid, how: Quantization) -> Floats:
    codes: Floats = np.clip(np.rint(values / grid.scale + grid.zero), 0, (1 << how.bits) - 1)
    return codes


def _descend(weights: Floats, moments: Floats, rounded: _Rounded, how: Quantization) -> _Rounded:
    """Choose every code, and then every scale, again: the best while all others stay as they are."""
    size, (codes, scales, zeros) = how.block_size, rounded
    moved = moments @ (_values(rounded, size) - weights)
    for block in range(len(scales)):
        start, end = block * size, (block + 1) * size
        own, residue = moments[start:end, start:end], moved[start:end].copy()
        grid = _Grid(scales[block], zeros[block])
        change = np.zeros_like(residue)
        for at in range(start, end):
            wanted = (codes[at] - grid.zero) * grid.scale - residue[at - start] / moments[at, at]
            new = _codes(wanted, grid, how)
            step = (new - codes[at]) * grid.scale
            codes[at], change[at - start] = new, step
            residue += own[:, at - start, None] * step
        centred = codes[start:end] - grid.zero
        by = _scale_step(centred, own, residue, grid.scale)
        scales[block] += by
        change += centred * by
        moved[end:] += moments[end:, start:end] @ change
    return _Rounded(codes, scales, zeros)


def _scale_step(centred: Floats, own: Floats, residue: Floats, scale: Floats) -> Floats:
    """Return what to add to each scale; nothing where it would change its sign or all but vanish."""
    power = (centred * (own @ centred)).sum(0)
    by = np.where(power > 0, -(centred * residue).sum(0) / np.where(power > 0, power, 1), 0)
    new = scale + by
    allowed = (np.abs(new) > 0.3 * np.abs(scale)) & (new * scale > 0)
    step: Floats = np.where(allowed, by, 0).astype(np.float32)
    return step


def _values(rounded: _Rounded, size: int) -> Floats:
    """Return the matrix [K, N] that the codes stand for."""
    codes, scales, zeros = rounded
    return (codes - np.repeat(zeros, size, 0)) * np.repeat(scales, size, 0)


def _blocks(rounded: _Rounded, how: Quantization) -> Blocks:
    codes, scales, zeros = (part.T for part in rounded)
    packed = pack(codes.reshape(*scales.shape, how.block_size).astype(np.uint8), how.bits)
    return Blocks(
        packed, np.ascontiguousarray(scales), None if how.symmetric else pack(zeros.astype(np.uint8), how.bits)
    )

"""Matrices to blocks of small integers, as MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from recycle_onnx.contract import FloatType
from recycle_onnx.errors import InputError
from recycle_onnx.export.lazy import row_ranges

BITS = (4, 8)
"""Of a weight."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Powers of two that the kernel takes."""
BLOCK_SIZE = {4: 32, 8: 64}
"""By default: the largest ones whose kernel rounds one row as it rounds several.

Small models want 32 for 4 bits too: a real one of 135 M parameters has a perplexity of 20.2 in float32, 23.4 in blocks
of 32 and 28.1 in blocks of 64.
"""
METHODS = ("mse", "rtn")
CALIBRATED = "calibrated"
"""By what the model reads (`calibrated/`); matrices that it does not see, the module's, take `mse`."""
SOURCE = "source"
"""The blocks of a GGUF file as they are (`source_blocks.py`); matrices that have none take `mse`, in 8 bits `rtn`."""
ACTIVATIONS: dict[str, FloatType] = {"fp32": "float32", "fp16": "float16"}
"""What is not quantized, by the name on the command line."""
PARTS = (
    "embed_tokens",
    "lm_head",
    "draft_head",
    "projection",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
"""Parts of both halves that `keep` may name."""
KEEP = {4: ("projection", "embed_tokens", "lm_head"), 8: ("projection",)}
"""What gets more bits by default, by the bits of the others; docs/performance.md has what that costs and saves."""
SMALLEST_BLOCK = 16
"""What the kernels take at least."""
FLOAT = ("embed_positions",)
"""Read a row at a time and small: stays as it is."""
RANGES = (0.78, 0.84, 0.88, 0.92, 0.96, 1.04)
"""Parts of a block's range that codes may cover, tried beside all of it: to clip the outermost value can leave less
error in the others."""


@dataclass(frozen=True)
class Quantization:
    """The way weights are stored: `bits` a value, in blocks of `block_size` that share a scale (0: 32 or 64).

    Symmetric blocks have no zero point. Parts named in `keep` get 8 bits where the others get 4, and stay float32
    where the others get 8; by default the module's projection, and of 4 bits embedding and LM head too. Methods:
    `rtn` rounds to nearest; `mse` searches the range of each block for the least squared error; by default `mse` for
    4 bits and `rtn` for 8, where the search gains next to nothing; `calibrated` (4 bits only) rounds by what the model
    reads, and gives some matrices 8 bits; `source` keeps the blocks of a GGUF file. `activations` in `fp16`, with
    scales, hidden states, caches and all weights that are not quantized, are for GPUs.
    """

    bits: int = 4
    block_size: int = 0
    symmetric: bool = False
    method: str = ""
    keep: tuple[str, ...] | None = None
    activations: str = "fp32"

    def __post_init__(self) -> None:
        if not self.method:
            object.__setattr__(self, "method", "rtn" if self.bits == 8 else "mse")
        if not self.block_size:
            object.__setattr__(self, "block_size", BLOCK_SIZE.get(self.bits, 0))
        if self.keep is None:
            object.__setattr__(self, "keep", KEEP.get(self.bits, ()))
        for name, choices in (
            ("bits", BITS),
            ("block_size", BLOCK_SIZES),
            ("method", (*METHODS, CALIBRATED, SOURCE)),
            ("activations", tuple(ACTIVATIONS)),
        ):
            if getattr(self, name) not in choices:
                listed = ", ".join(map(str, choices))
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; expected one of: {listed}")
        if self.method == CALIBRATED and self.bits != 4:
            raise InputError(f"--method calibrated is for 4 bits; {self.bits} bits need none: leave --method out")
        if unknown := sorted(set(self.keep or ()) - set(PARTS)):
            raise InputError(f"--keep names {unknown[0]!r}; expected some of: {', '.join(PARTS)}")

    @property
    def precision(self) -> str:
        """The bundle's precision: `int4` or `int8`."""
        return f"int{self.bits}"

    @property
    def float_type(self) -> FloatType:
        """The type of hidden states and caches."""
        return ACTIVATIONS[self.activations]

    def for_matrix(self, name: str, width: int) -> Quantization | None:
        """Return how the matrix `name` with rows of `width` values is stored; None for float32.

        Blocks divide a row.
        """
        kept = any(part in name for part in self.keep or ())
        if (kept and self.bits == 8) or any(part in name for part in FLOAT):
            return None
        block_size = self.block_size
        # A row need not be a multiple of the block: smaller blocks divide it, as long as kernels take them.
        while width % block_size:
            block_size //= 2
        if block_size < SMALLEST_BLOCK:
            return None
        own = replace(self, block_size=block_size)
        return replace(own, bits=8, method="rtn") if kept else own


class Blocks(NamedTuple):
    """A quantized matrix [N, K] of B = K / block size blocks a row.

    `packed` u8 [N, B, block size · bits / 8], low bits first; `scales` f32 [N, B]; `zero_points` u8 [N, ⌈B · bits / 8⌉]
    or None where blocks are symmetric.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None


def quantize(matrix: NDArray[np.float32], how: Quantization) -> Blocks:
    """Quantize `matrix` [N, K], some rows at a time; every block stands for itself."""
    nearest = how.method == "rtn" or (how.method == SOURCE and how.bits == 8)
    quantize_rows = _round_to_nearest if nearest else _least_squares
    return join([quantize_rows(matrix[rows], how) for rows in row_ranges(*matrix.shape)], how)


def join(parts: Sequence[Blocks], how: Quantization) -> Blocks:
    """Join parts that follow each other in a matrix's rows."""
    packed, scales, zero_points = zip(*parts, strict=True)
    return Blocks(
        np.concatenate(packed), np.concatenate(scales), None if how.symmetric else np.concatenate(zero_points)
    )


def dequantize(blocks: Blocks, how: Quantization) -> NDArray[np.float32]:
    """Compute the matrix [N, K] that the kernels compute with."""
    rows, count = blocks.scales.shape
    values = unpack(blocks.packed, how.bits).reshape(rows, count, how.block_size).astype(np.float32)
    middle = np.full((rows, count), 1 << (how.bits - 1), np.float32)
    if blocks.zero_points is not None:
        middle = unpack(blocks.zero_points, how.bits)[:, :count].astype(np.float32)
    product: NDArray[np.float32] = (values - middle[..., None]) * blocks.scales[..., None]
    return product.reshape(rows, -1)


def _round_to_nearest(rows: NDArray[np.float32], how: Quantization) -> Blocks:
    config = DefaultWeightOnlyQuantConfig(block_size=how.block_size, is_symmetric=how.symmetric, bits=how.bits)
    packed, *others = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(rows.T))
    scales, zero_points = (values.reshape(len(rows), -1) for values in others)  # ONNX Runtime 1.23 gives [N · B]
    return Blocks(packed, scales, zero_points)


def _least_squares(rows: NDArray[np.float32], how: Quantization) -> Blocks:
    """Find for each block the range, a part of its own, and then the scale that leave the least squared error."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, how.block_size)  # or sums would round otherwise
    best, *chosen = _rounded(blocks, how, 1.0)
    for part in RANGES:
        error, *other = _rounded(blocks, how, part)
        better = error < best
        best = np.where(better, error, best)
        chosen = [np.where(better, new, old) for new, old in zip(other, chosen, strict=True)]
    values, scales, zero_points = chosen
    return Blocks(
        pack(values.astype(np.uint8), how.bits),
        scales[..., 0].astype(np.float32),
        pack(zero_points[..., 0].astype(np.uint8), how.bits),
    )


def _rounded(blocks: NDArray[np.float32], how: Quantization, part: float) -> tuple[NDArray[np.float32], ...]:
    """Round blocks [N, B, size], when `part` of their range is covered.

    Return squared error, values, scales and zero points.
    """
    top, middle = np.float32(2**how.bits - 1), np.float32(2 ** (how.bits - 1))
    # Zero lies in every range, so that it stays exactly zero.
    low, high = np.minimum(blocks.min(-1, keepdims=True), 0), np.maximum(blocks.max(-1, keepdims=True), 0)
    scale = np.where(high > -low, high, low) * (-part / middle) if how.symmetric else (high - low) * (part / top)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    zero = np.full_like(scale, middle) if how.symmetric else np.clip(np.round(-part * low / scale), 0, top)
    values = np.clip(np.round(blocks / scale + zero), 0, top)
    centred = values - zero
    # The codes are chosen; the scale that suits them best is a least-squares fit through zero.
    power = np.square(centred).sum(-1, keepdims=True)
    fitted = (blocks * centred).sum(-1, keepdims=True) / np.maximum(power, 1)
    scale = np.where(power > 0, fitted, scale)
    return np.square(scale * centred - blocks).sum(-1, keepdims=True), values, scale, zero


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack two 4-bit values into a byte, the first one low; an odd last one alone."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: NDArray[np.uint8] = values[..., ::2] | np.left_shift(values[..., 1::2], np.uint8(4))
    return packed


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unpack what `pack` packed; an odd last value has an empty neighbour."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)

"""ggml's blocks as integers, scales and minima.

The integers come from `gguf`'s own decoder: a block whose scale is 1 and whose minimum is 0 decodes to its integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
from numpy.typing import NDArray

from recycle_onnx.checkpoint.integers import Integers

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

ONE, NOTHING = bytes.fromhex("003c"), bytes(2)
"""1 and 0 in float16."""
ONES_AND_ZEROS = bytes([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1])
"""Scales of 1 and minima of 0 in the six bits each that Q4_K and Q5_K have for them."""


@dataclass(frozen=True)
class Layout:
    """A layout of blocks [blocks, bytes] of `levels` integers around `zero`: what makes scales 1, and what they are."""

    levels: int
    zero: int
    unit: Mapping[int, bytes]
    scales: Callable[[Bytes], Floats]
    minima: Callable[[Bytes], Floats] | None = None


def _half(start: int) -> Callable[[Bytes], Floats]:
    """Make a reader of a float16 at an offset, as [blocks, 1]."""
    return lambda blocks: np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _six_bits(which: int, sign: int) -> Callable[[Bytes], Floats]:
    """Make a reader of the scales (0) or minima (1) of Q4_K and Q5_K [blocks, 8]."""

    def read(blocks: Bytes) -> Floats:
        six = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))[which]
        scaled: Floats = np.float32(sign) * _half(2 * which)(blocks) * six.astype(np.float32)
        return scaled

    return read


def _q6_scales(blocks: Bytes) -> Floats:
    scaled: Floats = _half(208)(blocks) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return scaled


K_UNIT = {0: ONE, 2: NOTHING, 4: ONES_AND_ZEROS}
"""Q4_K and Q5_K have scales and minima twice: of the whole block, and of its eight parts relative to those."""
LAYOUTS = {
    "Q4_0": Layout(16, 8, {0: ONE}, _half(0)),
    "Q5_0": Layout(32, 16, {0: ONE}, _half(0)),
    "Q8_0": Layout(256, 128, {0: ONE}, _half(0)),
    "IQ4_NL": Layout(256, 128, {0: ONE}, _half(0)),
    "Q6_K": Layout(64, 32, {192: bytes([1] * 16), 208: ONE}, _q6_scales),
    "Q4_1": Layout(16, 0, {0: ONE, 2: NOTHING}, _half(0), _half(2)),
    "Q5_1": Layout(32, 0, {0: ONE, 2: NOTHING}, _half(0), _half(2)),
    "Q4_K": Layout(16, 0, K_UNIT, _six_bits(0, 1), _six_bits(1, -1)),
    "Q5_K": Layout(32, 0, K_UNIT, _six_bits(0, 1), _six_bits(1, -1)),
}
"""Types whose values are scale · integer + minimum. (IQ4_NL's sixteen levels are integers of eight bits.)"""


def read_integers(rows: Bytes, kind: str) -> Integers | None:
    """Read rows of bytes [N, bytes a row] in ggml type `kind` as integers; None for a type without any."""
    if kind not in LAYOUTS:
        return None
    layout = LAYOUTS[kind]
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = np.ascontiguousarray(rows).reshape(-1, size)
    unit = blocks.copy()
    for start, value in layout.unit.items():
        unit[:, start : start + len(value)] = np.frombuffer(value, np.uint8)
    codes = dequantize(unit, GGMLQuantizationType[kind]) + np.float32(layout.zero)
    return Integers(
        kind,
        layout.levels,
        layout.zero,
        codes.astype(np.uint8).reshape(len(rows), -1),
        layout.scales(blocks).reshape(len(rows), -1),
        None if layout.minima is None else layout.minima(blocks).reshape(len(rows), -1),
    )

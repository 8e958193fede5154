"""The blocks of a quantized file as the kernels' blocks: bit by bit where they can be, and as near as can be elsewhere.

What is symmetric around an integer, or has one in each block for a zero point, is exact. What has a minimum m a block,
as Q4_1 and the k-quants have, is scale s · code + m, and -m / s is no integer, which is all that the kernels take at
full speed:

- in 4 bits the zero point is rounded, and what that leaves, a value a block, becomes more columns of the same matrix.
  They multiply the sums of x over the blocks (`x`'s sum times a constant is what the constant adds to the product);
- in 8 bits there is a finer grid: codes are multiples of an integer, chosen so that -m / s is nearly an integer too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import (
    BLOCK_SIZE,
    SOURCE,
    Blocks,
    Quantization,
    dequantize,
    join,
    pack,
    quantize,
    unpack,
)

Floats = NDArray[np.float32]

MATRICES = "_proj.weight"
"""How the names of a decoder layer's matrices end."""
NEAR = 0.01
"""Root mean square, relative to the values', that 4 bits with sums may miss. Random weights in Q4_1 are missed by
0.18 %; minima far from 0, for which 4 bits are too few, go to 8."""


FLOAT_BITS = 8
"""Of a base's matrices that a quantized file left in floats: whoever quantized it did not want them in fewer."""
FLOATS = "floats"
"""What such matrices are called in reports."""


class QuantizedRows(NamedTuple):
    """Rows of a matrix that are stored together; `columns` are the matrix's own, or more with those of the sums.

    `kind` is what they were in the file they came from.
    """

    blocks: Blocks
    how: Quantization
    columns: int
    kind: str = FLOATS


@dataclass
class Kept:
    """The number of weights stored bit by bit and nearly so, by the file's types, and by how much the latter miss.

    `error` and `energy` are sums of squares: of what the second kind misses, and of their values. `matrices` says of
    each matrix by its name in the graph what was stored in the file, and what is computed.
    """

    exact: dict[str, int] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)
    error: float = 0.0
    energy: float = 0.0
    matrices: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, name: str, parts: Iterable[QuantizedRows]) -> None:
        """Note how the matrix `name` was and is stored."""
        sides = {"stored": [part.kind for part in parts], "computed": [computed(part.how) for part in parts]}
        self.matrices[name] = {side: " and ".join(dict.fromkeys(texts)) for side, texts in sides.items()}

    def summary(self, file: str) -> dict[str, Any]:
        """Summarise for a manifest; `deviation` is the root mean square of the misses, relative to the values'.

        `fidelity` is `as stored` where all that the file has quantized is so bit by bit.
        """
        deviation = (self.error / self.energy) ** 0.5 if self.energy else 0.0
        return {
            "file": file,
            "fidelity": "near" if self.near else "as stored",
            "exact": self.exact,
            "near": self.near,
            "deviation": round(deviation, 6),
            "matrices": self.matrices,
        }


def computed(how: Quantization) -> str:
    """Say with which integers a matrix is computed."""
    return f"{how.bits} bits in blocks of {how.block_size}{'' if how.symmetric else ', zero points'}"


def with_source(how: Quantization, weights: BaseWeights, *, preferred: bool) -> Quantization:
    """Return the method `source` where it is `preferred` and suits the weights; `how` itself elsewhere.

    Raises:
        InputError: `how` asks for it, and no matrix of a layer has integers.
    """
    if how.method == SOURCE and not _share(weights, 8):
        raise InputError(
            f"{weights.files[0]}: has no blocks such as a GGUF file's Q4_0, Q4_1, Q4_K or Q8_0, or GPTQ's, which "
            "--method source keeps; leave --method out"
        )
    return replace(how, method=SOURCE) if preferred and _share(weights, how.bits) > 0.5 else how


def refuse_rounding_again(how: Quantization, weights: BaseWeights) -> None:
    """Refuse to round weights to fewer bits that somebody quantized already, where nobody asked for that.

    Raises:
        InputError: most of the layers' weights are integers, and `how` is not to keep them.
    """
    if how.method != SOURCE and _share(weights, 8) > 0.5:
        kinds = " and ".join(sorted({kind for name in weights.shapes if (kind := weights.integer_type(name))}))
        raise InputError(
            f"{weights.files[0]}: its weights are quantized already ({kinds}), and {how.precision} would round them a "
            "second time; --precision int8 keeps them, `export --requantize` rounds them all the same"
        )


def stored_kinds(weights: BaseWeights) -> dict[str, int]:
    """Count the weights that the file has as integers, by the file's names for them."""
    counts: dict[str, int] = defaultdict(int)
    for name, shape in weights.shapes.items():
        if kind := weights.integer_type(name):
            counts[kind] += int(np.prod(shape))
    return dict(counts)


def _share(weights: BaseWeights, bits: int) -> float:
    """Return the part of the layers' weights that a file has in integers of no more than `bits`."""
    sizes = {True: 0, False: 0}
    for name, shape in weights.shapes.items():
        if name.endswith(MATRICES):
            fits = weights.integer_type(name) is not None
            if fits and bits < 8:
                fits = weights.integers(name, slice(0, 1)).levels <= 1 << bits
            sizes[fits] += int(np.prod(shape))
    return sizes[True] / sum(sizes.values())


def parts_of(pieces: Iterable[Integers | Floats], how: Quantization, *, table: bool, kept: Kept) -> list[QuantizedRows]:
    """Return the matrix whose rows are `pieces`: a part for each run of rows that are stored alike.

    A `table`, whose rows are looked up, has no columns for sums.
    """
    stored = _stored(pieces, how, table, kept)
    parts = []
    for (own, columns, kind), run in groupby(stored, lambda part: part[1:]):
        parts.append(QuantizedRows(join([part.blocks for part in run], own), own, columns, kind))
    return parts


def _stored(pieces: Iterable[Integers | Floats], how: Quantization, table: bool, kept: Kept) -> Iterator[QuantizedRows]:
    for piece in pieces:
        if not isinstance(piece, Integers):
            own = for_floats(how, piece.shape[1])
            yield QuantizedRows(quantize(piece, own), own, piece.shape[1])
            continue
        bits = 4 if piece.levels <= 16 and how.bits == 4 else 8
        if piece.minima is None:
            kept.exact[piece.kind] = kept.exact.get(piece.kind, 0) + piece.codes.size
            blocks = _symmetric(piece, bits) if piece.zeros is None else _with_zeros(piece, bits)
            yield QuantizedRows(blocks, _as_stored(piece, bits, how), piece.codes.shape[1], piece.kind)
        else:
            yield _near(piece, how, sums=bits == 4 and not table, kept=kept)


def for_floats(how: Quantization, width: int) -> Quantization:
    """Return how a matrix of rows of `width` values is stored that the file left in floats."""
    own = replace(how, bits=FLOAT_BITS, block_size=BLOCK_SIZE[FLOAT_BITS], method="rtn", keep=()).for_matrix("", width)
    assert own is not None  # parts of one matrix have rows of one width, which the integers' blocks divide
    return own


def _near(piece: Integers, how: Quantization, *, sums: bool, kept: Kept) -> QuantizedRows:
    """Store blocks with minima: with columns for sums where that is near enough, else on a finer grid."""
    values, columns = piece.values(), piece.codes.shape[1]
    energy = _squares(values)
    if sums:
        part = _with_sums(piece, _as_stored(piece, 4, how))
        error = _squares(meant(part, columns) - values)
    if not sums or error > NEAR**2 * energy:
        part = QuantizedRows(_finer(piece), _as_stored(piece, 8, how), columns, piece.kind)
        error = _squares(meant(part, columns) - values)
    kept.near[piece.kind] = kept.near.get(piece.kind, 0) + piece.codes.size
    kept.error += error
    kept.energy += energy
    return part


def _as_stored(piece: Integers, bits: int, how: Quantization) -> Quantization:
    symmetric = piece.minima is None and piece.zeros is None
    return Quantization(bits, piece.block_size, symmetric, SOURCE, keep=(), activations=how.activations)


def _squares(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def meant(part: QuantizedRows, columns: int) -> Floats:
    """Return the matrix [N, columns] that a part stands for, its sums' columns spread over their blocks."""
    whole = dequantize(part.blocks, part.how)
    own, sums = whole[:, :columns], whole[:, columns : part.columns]
    if not sums.shape[1]:
        return own
    return own + np.repeat(sums, part.how.block_size, axis=1)


def _symmetric(piece: Integers, bits: int) -> Blocks:
    """Store codes around the middle of `bits`; scales stay as they are."""
    shift = np.uint8((1 << (bits - 1)) - piece.zero)
    return Blocks(_packed(piece.codes + shift, piece.block_size, bits), piece.scales, None)


def _with_zeros(piece: Integers, bits: int) -> Blocks:
    """Store codes, scales and the blocks' own zero points as they are."""
    assert piece.zeros is not None
    return Blocks(_packed(piece.codes, piece.block_size, bits), piece.scales, pack(piece.zeros, bits))


def _with_sums(piece: Integers, how: Quantization) -> QuantizedRows:
    """Store 4 bits with a rounded zero point, and columns for what that leaves of each block's minimum."""
    scales, minima, codes = _without_flat(piece)
    zeros = np.clip(np.rint(-minima / scales), 0, 15)
    left = (minima + zeros * scales).astype(np.float32)
    # A row has one sum a block of x, so their number is seldom a whole number of blocks: zeros fill the last one.
    padded = np.pad(left, [(0, 0), (0, -left.shape[1] % how.block_size)])
    sums = quantize(padded, Quantization(4, how.block_size, method="mse", keep=()))
    assert sums.zero_points is not None
    own_zeros = unpack(sums.zero_points, 4)[:, : sums.scales.shape[1]]
    all_zeros = np.concatenate([zeros.astype(np.uint8), own_zeros], axis=1)
    own = _packed(codes, how.block_size, 4)
    blocks = Blocks(
        np.concatenate([own, sums.packed], axis=1),
        np.concatenate([scales, sums.scales], axis=1),
        pack(all_zeros, 4),
    )
    return QuantizedRows(blocks, how, codes.shape[1] + left.shape[1], piece.kind)


def _finer(piece: Integers) -> Blocks:
    """Store 8 bits: round (code + minimum / scale) · k, for the whole k by which minimum / scale · k misses least.

    Where a minimum is so far from 0 that no whole k fits, k is a fraction, and codes are rounded too.
    """
    scales, minima, codes = _without_flat(piece)
    offset, top = minima / scales, piece.levels - 1
    best = np.full(scales.shape, np.inf, np.float32)
    # Where no whole k fits: the largest fraction by which codes stay within 8 bits on either side.
    factor = 255 / np.maximum(np.abs(offset), np.abs(offset + top))
    for k in range(1, 255 // top + 1):
        whole = np.rint(offset * k)
        fits = (whole >= -255) & (whole + k * top <= 255)
        miss = np.where(fits, np.abs(offset * k - whole) / k, np.inf)
        factor, best = np.where(miss < best, k, factor), np.minimum(miss, best)
    zeros = np.clip(np.rint(-offset * factor), 0, 255)
    rows, count = scales.shape
    moved = np.rint((codes.reshape(rows, count, -1) + offset[..., None]) * factor[..., None]) + zeros[..., None]
    finer = np.clip(moved, 0, 255).astype(np.uint8).reshape(rows, -1)
    return Blocks(_packed(finer, piece.block_size, 8), (scales / factor).astype(np.float32), zeros.astype(np.uint8))


def _without_flat(piece: Integers) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Return scales that are not 0, minima and codes: a block without a scale is its minimum throughout."""
    assert piece.minima is not None
    flat = piece.scales == 0
    scales = np.where(flat, np.maximum(np.abs(piece.minima), np.float32(1e-30)), piece.scales)
    codes = np.where(np.repeat(flat, piece.block_size, axis=1), np.uint8(0), piece.codes)
    return scales, piece.minima, codes


def _packed(codes: NDArray[np.uint8], block_size: int, bits: int) -> NDArray[np.uint8]:
    return pack(codes.reshape(len(codes), -1, block_size), bits)

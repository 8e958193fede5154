"""Quantized matrices of a graph as a tuner takes them, and its scales back into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle
from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families import read_config
from recycle_onnx.checkpoint.weights import ALL
from recycle_onnx.export.block_quantizer import Blocks, Quantization, unpack
from recycle_onnx.export.calibrated.folding import Folding
from recycle_onnx.export.full_model import LM_HEAD
from recycle_onnx.export.lazy import LazyWeight, load_lazily, weights_of
from recycle_onnx.export.quantize_graph import Made
from recycle_onnx.progress import Progress
from recycle_onnx.tuning import FloatModel, Floats, Grid, Tuned, Tuner

FUSED, APART = "qkv_proj", ("q_proj", "k_proj", "v_proj")
"""The graph multiplies queries, keys and values at once; the torch model has three products."""
TABLES = ("embed_tokens", "embed_positions", "lm_head")
"""Stored as [rows, width]; the other matrices are the second factors of products, [K, N]."""


class Tuning(NamedTuple):
    """The outcome of a tuning: matrices with other scales, and norms with other weights."""

    made: Made
    vectors: Mapping[str, Floats]
    tuned: Tuned | None


def tune(
    tensors: GraphTensors, made: Made, windows: NDArray[np.int64], tuner: Tuner, report: Progress, *, write: bool
) -> Tuning:
    """Let `tuner` tune the scales of `made`, made of a float32 bundle's full model; codes and zero points stay."""
    base, bundle = tensors.base, tensors.bundle
    grids = {
        name: own
        for weight, parts in made.items()
        for name, own in zip(_names(weight), _cut([_grid(*part) for part in parts], _rows(weight, base)), strict=True)
    }
    tuned = tuner(FloatModel(base, tensors, bundle.digest, bundle.folder), grids, windows, report, write=write)
    if tuned is None:
        return Tuning(made, {}, None)
    scales = {weight: _joined(parts, [tuned.scales[name] for name in _names(weight)]) for weight, parts in made.items()}
    return Tuning(scales, tuned.norms, tuned)


class GraphTensors:
    """The tensors of a float32 bundle's full model by their neutral names.

    Graphs keep query, key and value in one, matrices transposed and with `residual_scale` in them, and norms as the
    factors that they are: `base` is a description with which these values compute the same. The factors of `folding`
    are in them, so they compute the same but for rounding.
    """

    def __init__(self, bundle: Bundle, folding: Folding) -> None:
        self.bundle, self._folding = bundle, folding
        self._weights = weights_of(load_lazily(bundle.graph("full"), {}))
        base, _ = read_config(bundle.folder / "config.json")
        norm = replace(base.norm, plus_one=False)
        self.base = replace(base, norm=norm, residual_scale=1.0, tied_embeddings=LM_HEAD not in self._weights)
        self._shapes = self.base.tensor_shapes()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def float32(self, name: str, rows: slice = ALL) -> Floats:
        stored, place = self._place(name)
        array: Floats = stored.numpy()
        if array.ndim == 2 and not any(table in name for table in TABLES):
            array = array.T
        array = self._folding.applied(str(stored.name), array)
        return np.ascontiguousarray(array[place][rows])

    def _place(self, name: str) -> tuple[LazyWeight, slice]:
        for number, part in enumerate(APART):
            fused = name.replace(part, FUSED)
            if part in name and fused in self._weights:
                start, stop = list(pairwise(np.cumsum([0, *_rows(fused, self.base)])))[number]
                return self._weights[fused], slice(start, stop)
        return self._weights[name], ALL


def _names(weight: str) -> list[str]:
    """Return the neutral names of what a graph's weight holds."""
    return [weight.replace(FUSED, part) for part in APART] if FUSED in weight else [weight]


def _rows(weight: str, base: BaseConfig) -> list[int]:
    """Return the rows of each matrix that a graph's weight holds."""
    if FUSED not in weight:
        return [base.tensor_shapes()[weight][0]]
    return [base.num_heads * base.head_dim, *[base.num_kv_heads * base.head_dim] * 2]


def _grid(blocks: Blocks, how: Quantization) -> Grid:
    rows, count = blocks.scales.shape
    codes = unpack(blocks.packed, how.bits).reshape(rows, count, how.block_size).astype(np.int16)
    zeros = np.full((rows, count), 1 << (how.bits - 1), np.int16)
    if blocks.zero_points is not None:
        zeros = unpack(blocks.zero_points, how.bits)[:, :count].astype(np.int16)
    return Grid((codes - zeros[..., None]).astype(np.int8), blocks.scales)


def _cut(grids: Sequence[Grid], rows: Sequence[int]) -> list[list[Grid]]:
    """Cut grids that follow each other into those of matrices with so many `rows`."""
    ends = np.cumsum([0, *(len(grid.scales) for grid in grids)])
    cut = []
    for start, stop in pairwise(np.cumsum([0, *rows])):
        places = [slice(max(0, start - first), max(0, stop - first)) for first in ends[:-1]]
        own = [Grid(grid.codes[place], grid.scales[place]) for grid, place in zip(grids, places, strict=True)]
        cut.append([grid for grid in own if len(grid.scales)])
    return cut


def _joined(
    parts: Sequence[tuple[Blocks, Quantization]], scales: Sequence[Sequence[Floats]]
) -> list[tuple[Blocks, Quantization]]:
    """Return the parts of a graph's weight with the scales of the matrices that it holds."""
    waiting = [array for own in scales for array in own]
    joined = []
    for blocks, how in parts:
        own: list[Floats] = []
        while sum(map(len, own)) < len(blocks.scales):
            own.append(waiting.pop(0))
        joined.append((blocks._replace(scales=np.concatenate(own)), how))
    return joined

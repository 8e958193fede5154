"""Weights that are read when they are stored, a few rows at a time, so that a graph can be built without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.weights import Tensors

VALUES_AT_ONCE = 1 << 22
"""Of a matrix: 16 MB in float32."""

Pieces = Iterator[NDArray[Any]]


class LazyWeight(ir.LazyTensor):
    """An initializer that is not read yet. Graphs that share one have the same object.

    `read` gives its rows in order, some at a time. `transposed`: a graph reads it as [K, N], and it comes as the rows
    of [N, K], one an output, as checkpoints have it. `integers` gives those rows as the file's small integers, where
    it has such.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        read: Callable[[], Pieces],
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
        transposed: bool = False,
        integers: Callable[[], Iterator[Integers]] | None = None,
    ) -> None:
        super().__init__(lambda: ir.tensor(_whole(self.pieces())), dtype, ir.Shape(shape), name=name)
        self._read, self._transposed = read, transposed
        self.integers = integers

    def pieces(self, *, transposed: bool = False) -> Pieces:
        """Yield the rows of the initializer, or of its transpose, in order.

        They come in one piece where the weight is not stored that way.
        """
        return self._read() if transposed == self._transposed else iter([_whole(self._read()).T])


Known = dict[tuple[str, int | None], LazyWeight]
"""The weights of files, by file and offset."""


def of_array(name: str, array: NDArray[Any]) -> LazyWeight:
    """Make a weight of a small array that is there already."""
    return LazyWeight(name, array.shape, lambda: iter([array]), dtype=ir.DataType.from_numpy(array.dtype))


def of_table(name: str, weights: Tensors) -> LazyWeight:
    """Make a weight of a table [N, K] of a checkpoint, as it is."""
    integers = _integers(weights, [name])
    return LazyWeight(name, weights.shape(name), lambda: _rows(weights, name), integers=integers)


def of_products(name: str, weights: Tensors, names: Sequence[str], scale: float) -> LazyWeight:
    """Make a weight of matrices [N, K] of a checkpoint, times `scale`: one [K, ΣN] for a product."""
    shapes = [weights.shape(part) for part in names]

    def read() -> Pieces:
        for piece in (piece for part in names for piece in _rows(weights, part)):
            yield piece if scale == 1 else piece * np.float32(scale)

    shape = (shapes[0][1], sum(part[0] for part in shapes))
    integers = _integers(weights, names) if scale == 1 else None
    return LazyWeight(name, shape, read, transposed=True, integers=integers)


def of_some_rows(name: str, table: LazyWeight, rows: Sequence[int]) -> LazyWeight:
    """Make a weight of the `rows` of a table, ascending."""
    wanted = np.asarray(rows)

    def chosen(start: int, count: int) -> NDArray[np.intp]:
        """Return which of `count` rows from `start` on are wanted."""
        first, last = np.searchsorted(wanted, (start, start + count))
        places: NDArray[np.intp] = wanted[first:last] - start
        return places

    def read() -> Pieces:
        start = 0
        for piece in table.pieces():
            if len(places := chosen(start, len(piece))):
                yield piece[places]
            start += len(piece)

    def integers() -> Iterator[Integers]:
        assert table.integers is not None
        start = 0
        for piece in table.integers():
            if len(places := chosen(start, len(piece.codes))):
                yield piece.at(places)
            start += len(piece.codes)

    shape = (len(wanted), table.shape.numpy()[1])
    return LazyWeight(name, shape, read, integers=None if table.integers is None else integers)


def weights_of(model: ir.Model) -> dict[str, LazyWeight]:
    """Return the weights of a graph that are not read yet, by name."""
    values = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: value for name, value in values.items() if isinstance(value, LazyWeight)}


def load_lazily(path: Path, known: Known) -> ir.Model:
    """Load a graph with its external weights not read; `known` are those of graphs read before."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            place = (str(value.const_value.path), value.const_value.offset)
            value.const_value = known.setdefault(place, _of_file(value.const_value))
    return model


def _of_file(tensor: ir.ExternalTensor) -> LazyWeight:
    """Make a weight of a file's tensor.

    It is not mapped: pages of a mapped file count as this process's memory until someone needs them.
    """
    shape, dtype = tensor.shape.numpy(), tensor.dtype.numpy()
    width = int(np.prod(shape[1:], dtype=np.int64))

    def read() -> Pieces:
        for rows in row_ranges(shape[0], width):
            offset = (tensor.offset or 0) + rows.start * width * dtype.itemsize
            count = (rows.stop - rows.start) * width
            yield np.fromfile(tensor.path, dtype, count, offset=offset).reshape(-1, *shape[1:])

    return LazyWeight(str(tensor.name), shape, read, dtype=tensor.dtype)


def row_ranges(count: int, width: int) -> Iterator[slice]:
    """Yield parts of `count` rows of `width` values that are small enough to compute with."""
    step = max(1, VALUES_AT_ONCE // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _rows(weights: Tensors, name: str) -> Pieces:
    return (weights.float32(name, rows) for rows in row_ranges(*weights.shape(name)))


def _integers(weights: Tensors, names: Sequence[str]) -> Callable[[], Iterator[Integers]] | None:
    """Return how to read matrices as the file's integers; None where it has one of them in floats."""
    if any(weights.integer_type(name) is None for name in names):
        return None
    return lambda: (weights.integers(name, rows) for name in names for rows in row_ranges(*weights.shape(name)))


def _whole(pieces: Iterable[NDArray[Any]]) -> NDArray[Any]:
    first, *others = pieces
    return np.concatenate([first, *others]) if others else first

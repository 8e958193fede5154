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
SourcePieces = Iterator[Integers | NDArray[np.float32]]
"""Rows of a matrix as a file has them: small integers, or floats where a part of it was left so."""


class LazyWeight(ir.LazyTensor):
    """An initializer that is not read yet. Graphs that share one have the same object.

    `read` gives its rows in order, some at a time. `transposed`: a graph reads it as [K, N], and it comes as the rows
    of [N, K], one an output, as checkpoints have it. `source` gives those rows as the file's small integers, where
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
        source: Callable[[], SourcePieces] | None = None,
    ) -> None:
        super().__init__(lambda: ir.tensor(_whole(self.pieces())), dtype, ir.Shape(shape), name=name)
        self._read, self._transposed = read, transposed
        self.source = source

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


def of_table(name: str, weights: Tensors, called: str | None = None) -> LazyWeight:
    """Make a weight of a table [N, K] of a checkpoint, as it is; the graph calls it so too, unless it is `called`."""
    shape, source = weights.shape(name), _source(weights, [name])
    return LazyWeight(called or name, shape, lambda: _rows(weights, name), source=source)


def of_products(name: str, weights: Tensors, names: Sequence[str], scale: float) -> LazyWeight:
    """Make a weight of matrices [N, K] of a checkpoint, times `scale`: one [K, ΣN] for a product."""
    shapes = [weights.shape(part) for part in names]

    def read() -> Pieces:
        for piece in (piece for part in names for piece in _rows(weights, part)):
            yield piece if scale == 1 else piece * np.float32(scale)

    shape = (shapes[0][1], sum(part[0] for part in shapes))
    # Scaled, they are no longer the file's integers.
    source = _source(weights, names) if scale == 1 else None
    return LazyWeight(name, shape, read, transposed=True, source=source)


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

    def source() -> SourcePieces:
        assert table.source is not None
        start = 0
        for piece in table.source():
            count = len(piece.codes if isinstance(piece, Integers) else piece)
            if len(places := chosen(start, count)):
                yield piece.at(places) if isinstance(piece, Integers) else piece[places]
            start += count

    shape = (len(wanted), table.shape.numpy()[1])
    return LazyWeight(name, shape, read, source=None if table.source is None else source)


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
            # One object for both graphs, so that a rewriter stores it once.
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


def _source(weights: Tensors, names: Sequence[str]) -> Callable[[], SourcePieces] | None:
    """Return how to read matrices as the file has them; None where it has all of them in floats."""
    whole = {name: weights.integer_type(name) is not None for name in names}
    if not any(whole.values()):
        return None

    def read() -> SourcePieces:
        for name in names:
            for rows in row_ranges(*weights.shape(name)):
                yield weights.integers(name, rows) if whole[name] else weights.float32(name, rows)

    return read


def _whole(pieces: Iterable[NDArray[Any]]) -> NDArray[Any]:
    first, *others = pieces
    return np.concatenate([first, *others]) if others else first

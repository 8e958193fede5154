"""From graphs with weights that are not read yet to files: the one way that weights go, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.lazy import LazyWeight, weights_of
from recycle_onnx.progress import Progress


class Rewriter:
    """A writer of a bundle's graphs, one after the other; what they share is stored once.

    This one stores weights as they are. Others change weights and graph on the way.
    """

    doing = "writing"

    def __init__(self, report: Progress) -> None:
        self.report = report
        self._stored: dict[LazyWeight, ir.ExternalTensor] = {}  # what both graphs refer to is written once
        self._stage, self._completed, self._total = "", 0, 0

    def save(self, model: ir.Model, path: Path) -> None:
        """Write `model` as `path`, and its weights into the same name with `.data` behind it."""
        own = {weight for weight in weights_of(model).values() if weight not in self._stored}
        self._stage, self._completed, self._total = f"{self.doing} {path.name}", 0, sum(weight.size for weight in own)
        self.report(0, 0, self._stage)
        with ExternalDataWriter(path.with_name(f"{path.name}.data")) as writer:
            self.rewrite(model.graph, writer)
        ir.save(model, path)

    def rewrite(self, graph: ir.Graph, writer: ExternalDataWriter) -> None:
        """Store all weights in `writer`'s file, and let the graph refer to them."""
        for value in graph.initializers.values():
            if isinstance(value.const_value, LazyWeight):
                value.const_value = self._store(value.const_value, writer)

    def convert(self, name: str, piece: NDArray[Any]) -> NDArray[Any]:
        """Convert some rows to what is stored."""
        return piece

    def pieces(self, weight: LazyWeight, *, transposed: bool = False) -> Iterator[NDArray[Any]]:
        """Yield a weight's rows, or those of its transpose, and report how much is written."""
        for piece in weight.pieces(transposed=transposed):
            yield piece
            self._completed += piece.size
            self.report(self._completed, self._total, self._stage)

    def _store(self, weight: LazyWeight, writer: ExternalDataWriter) -> ir.ExternalTensor:
        if weight not in self._stored:
            name = str(weight.name)
            self._stored[weight] = writer.write(name, (self.convert(name, piece) for piece in self.pieces(weight)))
        return self._stored[weight]

"""A float32 graph to one whose large weights are blocks of small integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.export.block_quantizer import Blocks, Quantization, quantize
from recycle_onnx.export.external_data import ExternalDataWriter, Place, place, read_tensor
from recycle_onnx.export.report import Report

MICROSOFT = "com.microsoft"
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level: int8 activations, two to three times as fast on CPUs."""


@dataclass(frozen=True)
class _Stored:
    """A quantized matrix in a data file, and how it was made."""

    how: Quantization
    packed: ir.ExternalTensor
    scales: ir.ExternalTensor
    zero_points: ir.ExternalTensor | None


class GraphQuantizer:
    """Rewrites the graphs of a bundle one after the other; what they share is quantized and stored once."""

    def __init__(self, how: Quantization, report: Report) -> None:
        self.how, self.report = how, report
        self._stored: dict[Place, _Stored] = {}
        self._copied: dict[Place, ir.ExternalTensor] = {}

    def rewrite(self, model: ir.Model, writer: ExternalDataWriter) -> None:
        """Replace products with weights and the embedding; store all that is external in `writer`'s file."""
        graph, folder = model.graph, writer.path.parent
        for node in list(graph):
            if node.op_type in ("MatMul", "FusedMatMul"):
                self._rewrite_product(graph, node, writer)
            elif node.op_type == "Gather":
                self._rewrite_gather(graph, node, writer)
        for value in list(graph.initializers.values()):
            if not (value.uses() or value.is_graph_input()):
                del graph.initializers[str(value.name)]
            elif isinstance(value.const_value, ir.ExternalTensor) and Path(value.const_value.base_dir) != folder:
                value.const_value = self._copy(value.const_value, writer)

    def _rewrite_product(self, graph: ir.Graph, node: ir.Node, writer: ExternalDataWriter) -> None:
        x, weight = node.inputs
        matrix = _matrix(weight, transposed=node.op_type == "MatMul")
        stored = self._store(weight, matrix, writer)
        if x is None or matrix is None or stored is None:
            return
        rows, width = matrix.shape
        sizes = {"K": width, "N": rows, "bits": stored.how.bits, "block_size": stored.how.block_size}
        inputs = [x, _initializer(graph, stored.packed), *_scales(graph, stored)]
        _replace(graph, node, "MatMulNBits", inputs, {**sizes, "accuracy_level": INT8_ACTIVATIONS})

    def _rewrite_gather(self, graph: ir.Graph, node: ir.Node, writer: ExternalDataWriter) -> None:
        table, ids = node.inputs
        matrix = _matrix(table, transposed=False)
        stored = self._store(table, matrix, writer)
        if ids is None or matrix is None or stored is None:
            return
        rows = _reshaped(stored.packed, (matrix.shape[0], matrix.shape[1] * stored.how.bits // 8))
        inputs = [_initializer(graph, rows), ids, *_scales(graph, stored)]
        sizes = {"bits": stored.how.bits, "block_size": stored.how.block_size, "gather_axis": 0, "quantize_axis": 1}
        _replace(graph, node, "GatherBlockQuantized", inputs, sizes)

    def _store(
        self, weight: ir.Value | None, matrix: NDArray[np.float32] | None, writer: ExternalDataWriter
    ) -> _Stored | None:
        """Quantize `matrix` [N, K] into the data file, or find it there; None where it stays as it is."""
        if weight is None or matrix is None:
            return None
        assert isinstance(weight.const_value, ir.ExternalTensor)
        name, where = str(weight.name), place(weight.const_value)
        how = self.how.for_matrix(name, matrix.shape[1])
        if how is None:
            return None
        if where not in self._stored:
            self.report(f"quantizing {writer.path.stem}: {name}")
            self._stored[where] = _write(name, quantize(matrix, how), how, writer)
        return self._stored[where]

    def _copy(self, tensor: ir.ExternalTensor, writer: ExternalDataWriter) -> ir.ExternalTensor:
        where = place(tensor)
        if where not in self._copied:
            self._copied[where] = writer.write(str(tensor.name), read_tensor(tensor))
        return self._copied[where]


def _matrix(weight: ir.Value | None, *, transposed: bool) -> NDArray[np.float32] | None:
    """A stored weight as [N, K], one row an output; None for anything else."""
    if weight is None or not isinstance(weight.const_value, ir.ExternalTensor):
        return None
    array = read_tensor(weight.const_value)
    if array.ndim != 2 or array.dtype != np.float32:
        return None
    return array.T if transposed else array


def _write(name: str, blocks: Blocks, how: Quantization, writer: ExternalDataWriter) -> _Stored:
    zero_points = blocks.zero_points
    return _Stored(
        how,
        writer.write(f"{name}.q{how.bits}", blocks.packed),
        writer.write(f"{name}.scales", blocks.scales),
        None if zero_points is None else writer.write(f"{name}.zero_points", zero_points),
    )


def _reshaped(tensor: ir.ExternalTensor, shape: tuple[int, ...]) -> ir.ExternalTensor:
    """The same bytes under another shape."""
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype,
        shape=ir.Shape(shape), name=f"{tensor.name}.rows", base_dir=tensor.base_dir,
    )  # fmt: skip


def _scales(graph: ir.Graph, stored: _Stored) -> list[ir.Value]:
    parts = (stored.scales, stored.zero_points)
    return [_initializer(graph, part) for part in parts if part is not None]


def _initializer(graph: ir.Graph, tensor: ir.ExternalTensor) -> ir.Value:
    name = str(tensor.name)
    if name not in graph.initializers:
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _replace(graph: ir.Graph, node: ir.Node, operator: str, inputs: list[ir.Value], attributes: dict[str, int]) -> None:
    """Put one com.microsoft node in the place of `node`; its output keeps name, type and shape."""
    old = node.outputs[0]
    new = ir.node(operator, inputs, attributes, domain=MICROSOFT, name=node.name)
    new.outputs[0].name = old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [old], new.outputs)

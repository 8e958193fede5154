"""A float32 graph to one whose large weights are blocks of small integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from recycle_onnx.export.block_quantizer import Blocks, Quantization, join, quantize
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.lazy import LazyWeight
from recycle_onnx.export.report import Report
from recycle_onnx.export.rewriter import Rewriter

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

    @property
    def rows(self) -> int:
        """Outputs."""
        return int(self.packed.shape.numpy()[0])

    @property
    def width(self) -> int:
        """Inputs."""
        return int(self.packed.shape.numpy()[1]) * self.how.block_size


class GraphQuantizer(Rewriter):
    """Makes products with weights and the embedding read blocks; stores what stays float32 as it is."""

    doing = "quantizing"

    def __init__(self, how: Quantization, report: Report) -> None:
        super().__init__(report)
        self.how = how
        self._quantized: dict[LazyWeight, _Stored] = {}

    def rewrite(self, graph: ir.Graph, writer: ExternalDataWriter) -> None:
        """Replace products with weights and the embedding, then store the other weights."""
        for node in list(graph):
            if node.op_type in ("MatMul", "FusedMatMul"):
                self._rewrite_product(graph, node, writer)
            elif node.op_type == "Gather":
                self._rewrite_gather(graph, node, writer)
        for value in list(graph.initializers.values()):
            if not (value.uses() or value.is_graph_input()):
                del graph.initializers[str(value.name)]
        super().rewrite(graph, writer)

    def _rewrite_product(self, graph: ir.Graph, node: ir.Node, writer: ExternalDataWriter) -> None:
        x, weight = node.inputs
        stored = self._quantize(weight, writer, transposed=node.op_type == "MatMul")
        if x is None or stored is None:
            return
        sizes = {"K": stored.width, "N": stored.rows, "bits": stored.how.bits, "block_size": stored.how.block_size}
        inputs = [x, _initializer(graph, stored.packed), *_scales(graph, stored)]
        _replace(graph, node, "MatMulNBits", inputs, {**sizes, "accuracy_level": INT8_ACTIVATIONS})

    def _rewrite_gather(self, graph: ir.Graph, node: ir.Node, writer: ExternalDataWriter) -> None:
        table, ids = node.inputs
        stored = self._quantize(table, writer, transposed=False)
        if ids is None or stored is None:
            return
        rows = _reshaped(stored.packed, (stored.rows, stored.width * stored.how.bits // 8))
        inputs = [_initializer(graph, rows), ids, *_scales(graph, stored)]
        sizes = {"bits": stored.how.bits, "block_size": stored.how.block_size, "gather_axis": 0, "quantize_axis": 1}
        _replace(graph, node, "GatherBlockQuantized", inputs, sizes)

    def _quantize(self, value: ir.Value | None, writer: ExternalDataWriter, *, transposed: bool) -> _Stored | None:
        """Store a weight as a quantized [N, K], or find it; None where it stays as it is. `transposed`: [K, N]."""
        weight = value.const_value if value is not None else None
        if not isinstance(weight, LazyWeight) or weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 2:
            return None
        name, shape = str(weight.name), weight.shape.numpy()
        how = self.how.for_matrix(name, shape[0 if transposed else 1])
        if how is None:
            return None
        if weight not in self._quantized:
            blocks = join([quantize(piece, how) for piece in self.pieces(weight, transposed=transposed)], how)
            self._quantized[weight] = _write(name, blocks, how, writer)
        return self._quantized[weight]


def _write(name: str, blocks: Blocks, how: Quantization, writer: ExternalDataWriter) -> _Stored:
    zero_points = blocks.zero_points
    return _Stored(
        how,
        writer.write(f"{name}.q{how.bits}", [blocks.packed]),
        writer.write(f"{name}.scales", [blocks.scales]),
        None if zero_points is None else writer.write(f"{name}.zero_points", [zero_points]),
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

"""A float32 graph to one whose large weights are blocks of small integers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.export.block_quantizer import SOURCE, Blocks, Quantization, join, quantize
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.half_precision import rounded, to_half_precision
from recycle_onnx.export.lazy import LazyWeight
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.export.source_blocks import Kept, QuantizedRows, for_floats, parts_of
from recycle_onnx.progress import Progress

BASE_LAYERS = "model.layers."
"""How names of the base's matrices begin, and the module's do not."""
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
"""Of these, MatMul has its weight as [K, N], the others as [N, K]."""


Made = Mapping[str, Sequence[tuple[Blocks, Quantization]]]
"""Quantized matrices by their weights' names: rows that follow each other, each part stored in its own way."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix [N, K] in a data file, as a flavour lays it out, and how it was made.

    Where `width` is more than the weight's own K, the columns behind multiply the sums of x over its blocks.
    """

    how: Quantization
    rows: int
    width: int
    packed: ir.ExternalTensor
    scales: ir.ExternalTensor
    zero_points: ir.ExternalTensor | None

    @property
    def parts(self) -> list[ir.ExternalTensor]:
        """The tensors that there are, in the order in which operators take them."""
        return [part for part in (self.packed, self.scales, self.zero_points) if part is not None]


class GraphQuantizer(Rewriter):
    """A rewriter by which products with weights and the embedding read blocks; the rest stays float32.

    A flavour says how blocks are laid out, and which operators read them.
    """

    doing = "quantizing"
    eight_bits: ClassVar[tuple[str, ...]] = ()
    """Parts that cannot have fewer."""

    def __init__(
        self,
        how: Quantization,
        report: Progress,
        made: Made = MappingProxyType({}),
        vectors: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    ) -> None:
        """Prepare to quantize by `how`.

        `made` are matrices that are quantized already, by name, and `vectors` other values of vectors.
        """
        super().__init__(report)
        self.how, self.made, self.vectors, self.kept = how, made, vectors, Kept()
        self._quantized: dict[LazyWeight, list[QuantizedMatrix]] = {}
        self._with_sums: dict[ir.Value, ir.Value] = {}

    @abstractmethod
    def round_alike(self, graph: ir.Graph) -> None:
        """Let runs on one token of `graph` round as runs on several do, on a CPU."""

    @abstractmethod
    def lay_out(self, name: str, part: QuantizedRows, writer: ExternalDataWriter) -> QuantizedMatrix:
        """Write the blocks of one matrix."""

    @abstractmethod
    def product(self, x: ir.Value, stored: QuantizedMatrix, graph: ir.Graph) -> Sequence[ir.Node]:
        """Make nodes that give x [..., K] times the matrix's rows."""

    @abstractmethod
    def gather(self, ids: ir.Value, stored: QuantizedMatrix, graph: ir.Graph) -> Sequence[ir.Node]:
        """Make nodes that give the matrix's rows `ids`."""

    def rewrite(self, graph: ir.Graph, writer: ExternalDataWriter) -> None:
        """Replace products with weights and the embedding, then store the other weights.

        Raises:
            InputError: a weight or a scale is beyond float16's range, where activations are to be float16.
        """
        for node in list(graph):
            if node.op_type in PRODUCTS:
                x, weight = node.inputs[:2]
                stored = self._quantize(weight, writer, transposed=node.op_type == "MatMul", table=False)
                if x is not None and stored:
                    width = _width(weight, transposed=node.op_type == "MatMul")
                    _replace(graph, node, self._products(x, stored, width, graph))
            elif node.op_type == "Gather":
                table, ids = node.inputs
                stored = self._quantize(table, writer, transposed=False, table=True)
                if ids is not None and stored:
                    _replace(graph, node, self.gather(ids, stored[0], graph))
        # What was quantized is read by nobody any more; left in, its float32 values would be stored beside the blocks.
        for value in list(graph.initializers.values()):
            if not (value.uses() or value.is_graph_input()):
                del graph.initializers[str(value.name)]
        super().rewrite(graph, writer)
        if self.how.float_type == "float16":
            to_half_precision(graph)
        elif graph.name == "full":  # what the module only proposes may round as it likes
            self.round_alike(graph)

    def convert(self, name: str, piece: NDArray[Any]) -> NDArray[Any]:
        """Convert scales and weights that are not quantized to the type of the activations."""
        return rounded(name, piece) if self.how.float_type == "float16" else piece

    def _store(self, weight: LazyWeight, writer: ExternalDataWriter) -> ir.ExternalTensor:
        name = str(weight.name)
        if name in self.vectors and weight not in self._stored:
            self._stored[weight] = writer.write(name, [self.convert(name, self.vectors[name])])
        return super()._store(weight, writer)

    def _products(
        self, x: ir.Value, stored: Sequence[QuantizedMatrix], width: int, graph: ir.Graph
    ) -> Sequence[ir.Node]:
        """Make the product with each part of a matrix of `width` columns, side by side."""
        nodes: list[ir.Node] = []
        products: list[ir.Value] = []
        for part in stored:
            read = x if part.width == width else self._and_sums(x, width, part.how.block_size, graph, nodes)
            nodes += self.product(read, part, graph)
            products.append(nodes[-1].outputs[0])
        if len(products) > 1:
            nodes.append(ir.node("Concat", products, {"axis": -1}))
        return nodes

    def _and_sums(self, x: ir.Value, width: int, size: int, graph: ir.Graph, nodes: list[ir.Node]) -> ir.Value:
        """Append to x [B, S, K] the sums of its blocks, made once for all products that read it.

        (Summed by ReduceSum: it adds up one row as it does several, which a product with ones need not.)
        """
        if x not in self._with_sums:
            shape, axis = (
                _constant(graph, f"{name}.{size}", np.array(value))
                for name, value in (("blocks", [0, 0, width // size, size]), ("last_axis", [-1]))
            )
            by_block = ir.node("Reshape", [x, shape])
            sums = ir.node("ReduceSum", [by_block.outputs[0], axis], {"keepdims": 0})
            nodes += [by_block, sums, ir.node("Concat", [x, sums.outputs[0]], {"axis": -1})]
            self._with_sums[x] = nodes[-1].outputs[0]
        return self._with_sums[x]

    def _quantize(
        self, value: ir.Value | None, writer: ExternalDataWriter, *, transposed: bool, table: bool
    ) -> list[QuantizedMatrix]:
        """Store a weight as a quantized [N, K], or find it; nothing where it stays as it is. `transposed`: [K, N].

        (Several parts where not all rows have as many bits.)
        """
        weight = value.const_value if value is not None else None
        if not isinstance(weight, LazyWeight) or weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 2:
            return []
        name, width = str(weight.name), _width(value, transposed=transposed)
        how = self.how.for_matrix(name, width)
        if how is None:
            return []
        if weight not in self._quantized:
            parts = self._parts(weight, how, width, transposed=transposed, table=table)
            if self.how.method == SOURCE:
                self.kept.note(name, parts)
            names = [name] if len(parts) == 1 else [f"{name}.part{number}" for number in range(len(parts))]
            self._quantized[weight] = [self.lay_out(own, part, writer) for own, part in zip(names, parts, strict=True)]
        return self._quantized[weight]

    def _parts(
        self, weight: LazyWeight, how: Quantization, width: int, *, transposed: bool, table: bool
    ) -> Sequence[QuantizedRows]:
        """Return the blocks of a weight: made before, as its file has them, or by rounding."""
        name = str(weight.name)
        if name in self.made:
            return [QuantizedRows(*made, width) for made in self.made[name]]
        if self.how.method == SOURCE and weight.source is not None:
            fewest = 8 if any(part in name for part in self.eight_bits) else self.how.bits
            return parts_of(weight.source(), replace(self.how, bits=fewest), table=table, kept=self.kept)
        if self.how.method == SOURCE and name.startswith(BASE_LAYERS):
            how = for_floats(how, width)
        pieces = [quantize(piece, how) for piece in self.pieces(weight, transposed=transposed)]
        return [QuantizedRows(join(pieces, how), how, width)]


def _width(value: ir.Value | None, *, transposed: bool) -> int:
    """Return K of a weight [N, K], or `transposed` [K, N]."""
    assert value is not None
    assert value.const_value is not None
    shape = value.const_value.shape.numpy()
    return shape[0 if transposed else 1]


def _constant(graph: ir.Graph, name: str, array: NDArray[np.int64]) -> ir.Value:
    name = f"constant.sums.{name}.{'_'.join(map(str, array))}"
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        kind = ir.TensorType(tensor.dtype)
        graph.register_initializer(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor))
    return graph.initializers[name]


def same_bytes(
    tensor: ir.ExternalTensor, shape: Sequence[int], *, dtype: ir.DataType | None = None, name: str | None = None
) -> ir.ExternalTensor:
    """Refer to the same bytes under another shape, as another type."""
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, dtype or tensor.dtype,
        shape=ir.Shape(shape), name=name or str(tensor.name), base_dir=tensor.base_dir,
    )  # fmt: skip


def initializers(graph: ir.Graph, tensors: Sequence[ir.ExternalTensor]) -> list[ir.Value]:
    """Return values of the graph that hold these tensors."""
    return [_initializer(graph, tensor) for tensor in tensors]


def _initializer(graph: ir.Graph, tensor: ir.ExternalTensor) -> ir.Value:
    name = str(tensor.name)
    if name not in graph.initializers:
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of `node`; the last one's output keeps name, type and shape."""
    *before, last = new
    old = node.outputs[0]
    for index, other in enumerate(before):
        other.name, other.outputs[0].name = f"{node.name}.{index}", f"{old.name}.{index}"
    last.name, last.outputs[0].name = node.name, old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], last.outputs)

"""Quantized products and rows by DequantizeLinear in blocks (opset 21), in the layout that runtimes fuse.

ONNX Runtime makes MatMulNBits of a MatMul with a DequantizeLinear of [K, N] in blocks along K; of no other layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.export.block_quantizer import Quantization, pack, unpack
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.flavours.second_row import add_to_attention
from recycle_onnx.export.quantize_graph import GraphQuantizer, QuantizedMatrix, initializers, same_bytes
from recycle_onnx.export.source_blocks import QuantizedRows

TYPES = {
    (4, False): ir.DataType.UINT4,
    (4, True): ir.DataType.INT4,
    (8, False): ir.DataType.UINT8,
    (8, True): ir.DataType.INT8,
}
"""By bits and symmetry."""


class StandardQuantizer(GraphQuantizer):
    """A quantizer to matrices [K, N] of small integers, also where rows of [N, K] are gathered.

    Tied matrices are stored once.
    """

    eight_bits = ("embed_tokens",)
    """(ONNX's Gather takes no 4-bit integers.)"""

    def round_alike(self, graph: ir.Graph) -> None:
        """Add a second row in attention, where there is one."""
        add_to_attention(graph)

    def lay_out(self, name: str, part: QuantizedRows, writer: ExternalDataWriter) -> QuantizedMatrix:
        """Write the blocks' transpose: integers [K, N], scales and zero points [K / block size, N]."""
        blocks, how, width = part.blocks, part.how, part.columns
        rows, count = blocks.scales.shape
        values = unpack(blocks.packed, how.bits).reshape(rows, -1)[:, :width]
        if how.symmetric:
            values ^= np.uint8(1 << (how.bits - 1))  # from an offset to two's complement
        zeros = None if blocks.zero_points is None else unpack(blocks.zero_points, how.bits)[:, :count]

        def write(kind: str, integers: NDArray[np.uint8]) -> ir.ExternalTensor:
            tensor = writer.write(f"{name}.{kind}", [pack(integers.T.reshape(-1), how.bits)])
            return same_bytes(tensor, integers.T.shape, dtype=TYPES[how.bits, how.symmetric])

        return QuantizedMatrix(
            how,
            rows,
            width,
            write(f"q{how.bits}", values),
            writer.write(f"{name}.scales", [self.convert(f"the scale of {name}", blocks.scales.T)]),
            None if zeros is None else write("zero_points", zeros),
        )

    def product(self, x: ir.Value, stored: QuantizedMatrix, graph: ir.Graph) -> Sequence[ir.Node]:
        """Make MatMul with the dequantized matrix."""
        weight = _dequantized(initializers(graph, stored.parts), stored.how)
        return [weight, ir.node("MatMul", [x, weight.outputs[0]])]

    def gather(self, ids: ir.Value, stored: QuantizedMatrix, graph: ir.Graph) -> Sequence[ir.Node]:
        """Gather columns [K, B, S] of each part, dequantized and transposed to [B, S, K]."""
        tables = [same_bytes(part, part.shape.numpy(), name=f"{part.name}.columns") for part in stored.parts]
        columns = [ir.node("Gather", [table, ids], {"axis": 1}) for table in initializers(graph, tables)]
        values = _dequantized([node.outputs[0] for node in columns], stored.how)
        return [*columns, values, ir.node("Transpose", values.outputs, {"perm": [1, 2, 0]})]


def _dequantized(parts: Sequence[ir.Value], how: Quantization) -> ir.Node:
    return ir.node("DequantizeLinear", parts, {"axis": 0, "block_size": how.block_size})

"""Quantized products and rows by com.microsoft's operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.flavours.second_row import add_to_group_query_attention
from recycle_onnx.export.quantize_graph import GraphQuantizer, QuantizedMatrix, initializers, same_bytes
from recycle_onnx.export.source_blocks import QuantizedRows

MICROSOFT = "com.microsoft"
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level: int8 activations, two to three times as fast on CPUs."""


class OrtQuantizer(GraphQuantizer):
    """A quantizer to MatMulNBits and GatherBlockQuantized, which read the same bytes: rows of blocks."""

    def round_alike(self, graph: ir.Graph) -> None:
        """Add a second row in attention, where there is one.

        MatMulNBits needs none up to blocks of 32, of 8 bits 64.
        """
        add_to_group_query_attention(graph)

    def lay_out(self, name: str, part: QuantizedRows, writer: ExternalDataWriter) -> QuantizedMatrix:
        """Write the blocks as they are."""
        blocks, how = part.blocks, part.how
        zero_points = blocks.zero_points
        return QuantizedMatrix(
            how,
            len(blocks.packed),
            part.columns,
            writer.write(f"{name}.q{how.bits}", [blocks.packed]),
            writer.write(f"{name}.scales", [self.convert(f"the scale of {name}", blocks.scales)]),
            None if zero_points is None else writer.write(f"{name}.zero_points", [zero_points]),
        )

    def product(self, x: ir.Value, stored: QuantizedMatrix, graph: ir.Graph) -> Sequence[ir.Node]:
        """Make MatMulNBits with int8 activations."""
        sizes = {"K": stored.width, "N": stored.rows, "bits": stored.how.bits, "block_size": stored.how.block_size}
        attributes = {**sizes, "accuracy_level": INT8_ACTIVATIONS}
        return [ir.node("MatMulNBits", [x, *initializers(graph, stored.parts)], attributes, domain=MICROSOFT)]

    def gather(self, ids: ir.Value, stored: QuantizedMatrix, graph: ir.Graph) -> Sequence[ir.Node]:
        """Make GatherBlockQuantized."""
        packed, *scales = stored.parts
        shape = (stored.rows, stored.width * stored.how.bits // 8)
        [table] = initializers(graph, [same_bytes(packed, shape, name=f"{packed.name}.rows")])
        attributes = {
            "bits": stored.how.bits,
            "block_size": stored.how.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        inputs = [table, ids, *initializers(graph, scales)]
        return [ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)]

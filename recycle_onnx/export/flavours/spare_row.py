"""One more row in attention where a run has a single one, so that it rounds as a run of several does.

ONNX Runtime's GroupQueryAttention multiplies a single row of probabilities by another kernel than several rows. The
sums differ in their last bits, and 8-bit activations make whole logits of that in later layers: a run on two tokens
would give another text than two runs on one. So a single row gets an empty one behind it, which is dropped again.

The empty row's key and value take the cache row behind the text. Where the buffers have no such row, nothing is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from recycle_onnx.contract import INPUT_IDS

ATTENTION = "GroupQueryAttention"
PACKED = slice(0, 3)
"""Queries, keys and values [B, S, heads·D] among the operator's inputs; where one holds all three, two are None."""
PAST_KEYS, LAST_INDEX, TOTAL, COSINES = 3, 5, 6, 7
"""Places of others."""


def add_spare_row(graph: ir.Graph) -> None:
    """Give every attention of `graph` a second row where a run has one; longer runs and batches stay as they are."""
    attentions = [node for node in graph if node.op_type == ATTENTION]
    if not attentions:
        return
    lengths = _lengths(graph, attentions)
    for node in attentions:
        _widen(graph, node, lengths)


@dataclass(frozen=True)
class _Lengths:
    """What all layers share.

    `last_index` and `total` count the added row; `pads` [2] and `axis` add it, `start`, `count` and `axis` drop it.
    """

    last_index: ir.Value
    total: ir.Value
    pads: ir.Value
    start: ir.Value
    count: ir.Value
    axis: ir.Value


def _lengths(graph: ir.Graph, attentions: list[ir.Node]) -> _Lengths:
    """Add a row if the run has one token, and buffers and rotary tables have a row behind the text."""
    ids = next(value for value in graph.inputs if value.name == INPUT_IDS)
    past, last_index, total = (attentions[0].inputs[at] for at in (PAST_KEYS, LAST_INDEX, TOTAL))
    tables = [node.inputs[COSINES] for node in attentions if len(node.inputs) > COSINES]
    positions = [_constant(graph, "positions", np.array([table.shape[0]])) for table in tables[:1]]
    nodes = Tape()

    def op(name: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        return nodes.op(name, inputs, attributes)

    start = _constant(graph, "start", np.array([0]))
    rows = op("Min", op("Shape", past, start=2, end=3), *positions)
    free = op("Sub", rows, op("Cast", total, to=ir.DataType.INT64))
    wanted = op("Sub", _constant(graph, "fewest", np.array([2])), op("Size", ids))
    added = op("Max", op("Min", wanted, free), start)
    added_to_total = op("Squeeze", op("Cast", added, to=ir.DataType.INT32))
    lengths = _Lengths(
        last_index=op("Add", last_index, added_to_total),
        total=op("Add", total, added_to_total),
        pads=op("Concat", start, added, axis=0),
        start=start,
        count=op("Shape", ids, start=1, end=2),
        axis=_constant(graph, "axis", np.array([1])),
    )
    graph.insert_before(attentions[0], nodes.nodes)
    return lengths


def _widen(graph: ir.Graph, node: ir.Node, lengths: _Lengths) -> None:
    """Add the row to what `node` reads, and drop it from what it writes."""
    nodes = Tape()
    for at, value in enumerate(node.inputs[PACKED]):
        if value is not None:
            node.replace_input_with(at, nodes.op("Pad", [value, lengths.pads, None, lengths.axis]))
    node.replace_input_with(LAST_INDEX, lengths.last_index)
    node.replace_input_with(TOTAL, lengths.total)
    graph.insert_before(node, nodes.nodes)
    y = node.outputs[0]
    cut = ir.node("Slice", [y, lengths.start, lengths.count, lengths.axis])
    y.replace_all_uses_with(cut.outputs[0])
    cut.replace_input_with(0, y)
    graph.insert_after(node, cut)


def _constant(graph: ir.Graph, name: str, array: NDArray[np.int64]) -> ir.Value:
    tensor = ir.tensor(array, name=f"spare_row.{name}")
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

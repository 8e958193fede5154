"""A second row in attention where a run has a single one, so that it rounds as a run of several does.

ONNX Runtime's attention multiplies a single row of probabilities by another kernel than several rows. The sums differ
in their last bits, and 8-bit activations make whole logits of that in later layers: a run on two tokens would give
another text than two runs on one. So a single row gets an empty one behind it, which is dropped again. Longer runs
cost no more than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from recycle_onnx.contract import INPUT_IDS

FEWEST = 2
"""Rows."""

# Places among the inputs of GroupQueryAttention. Keys and values are None where they lie beside the queries.
PACKED = slice(0, 3)
PAST_KEYS, LAST_INDEX, TOTAL, COSINES = 3, 5, 6, 7
"""Inputs of GroupQueryAttention, by their place."""

# The same of Attention.
QUERIES, ALLOWED = 0, 3


@dataclass(frozen=True)
class _Row:
    """A row to add and to drop again: `pads` [2] along `axis`; from `start`, the first `count`."""

    pads: ir.Value
    start: ir.Value
    count: ir.Value
    axis: ir.Value

    def added(self, nodes: Tape, x: ir.Value, filling: ir.Value | None = None) -> ir.Value:
        """Return `x` with the row, if one is to be added."""
        return nodes.op("Pad", [x, self.pads, filling, self.axis])

    def drop_behind(self, graph: ir.Graph, node: ir.Node) -> None:
        """Let nodes that read what `node` writes see it without the row."""
        y = node.outputs[0]
        cut = ir.node("Slice", [y, self.start, self.count, self.axis])
        y.replace_all_uses_with(cut.outputs[0])
        cut.replace_input_with(0, y)
        graph.insert_after(node, cut)


def add_to_group_query_attention(graph: ir.Graph) -> None:
    """Give every GroupQueryAttention a second row of queries, keys and values [B, S, heads·D] where a run has one.

    The row's key and value take the cache row behind the text. Nothing is added where the buffers or the rotary tables
    have no such row, nor to a batch: the operator takes several rows a text only where there is one text.
    """
    by_length: dict[ir.Value | None, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            by_length.setdefault(node.inputs[TOTAL], []).append(node)
    for attentions in by_length.values():
        _add_where_there_is_room(graph, attentions)


def _add_where_there_is_room(graph: ir.Graph, attentions: Sequence[ir.Node]) -> None:
    """Give a second row to those whose buffers have the same rows."""
    nodes, ids = Tape(), _input_ids(graph)
    past, last_index, total = (attentions[0].inputs[at] for at in (PAST_KEYS, LAST_INDEX, TOTAL))
    rows = nodes.op("Shape", [past], {"start": 2, "end": 3})
    behind = nodes.op("Sub", [nodes.op("Min", [rows, *_positions(graph, attentions)]), _cast(nodes, total, "INT64")])
    wanted = nodes.op("Sub", [_constant(graph, "fewest", np.array([FEWEST])), nodes.op("Size", [ids])])
    added, row = _row(graph, nodes, nodes.op("Min", [wanted, behind]), axis=1)
    count = nodes.op("Squeeze", [_cast(nodes, added, "INT32")])
    last_index, total = (nodes.op("Add", [length, count]) for length in (last_index, total))
    graph.insert_before(attentions[0], nodes.nodes)
    for node in attentions:
        nodes = Tape()
        for at, x in enumerate(node.inputs[PACKED]):
            if x is not None:
                node.replace_input_with(at, row.added(nodes, x))
        node.replace_input_with(LAST_INDEX, last_index)
        node.replace_input_with(TOTAL, total)
        graph.insert_before(node, nodes.nodes)
        row.drop_behind(graph, node)


def add_to_attention(graph: ir.Graph) -> None:
    """Give every Attention a second row of queries [B, heads, S, D] where a run has one; it sees all keys."""
    attentions = [node for node in graph if node.op_type == "Attention"]
    if not attentions:
        return
    nodes = Tape()
    count = nodes.op("Shape", [_input_ids(graph)], {"start": 1, "end": 2})
    wanted = nodes.op("Sub", [_constant(graph, "fewest", np.array([FEWEST])), count])
    _, row = _row(graph, nodes, wanted, axis=2)
    graph.insert_before(attentions[0], nodes.nodes)
    everything = _constant(graph, "everything", np.array(True))
    masks: dict[ir.Value, ir.Value] = {}
    for node in attentions:
        nodes = Tape()
        queries, allowed = node.inputs[QUERIES], node.inputs[ALLOWED]
        assert queries is not None
        assert allowed is not None
        if allowed not in masks:
            masks[allowed] = row.added(nodes, allowed, everything)
        node.replace_input_with(QUERIES, row.added(nodes, queries))
        node.replace_input_with(ALLOWED, masks[allowed])
        graph.insert_before(node, nodes.nodes)
        row.drop_behind(graph, node)


def _row(graph: ir.Graph, nodes: Tape, wanted: ir.Value, axis: int) -> tuple[ir.Value, _Row]:
    """Compute how many rows [1] are added, `wanted` or none if that is less, and how to add and drop them."""
    start = _constant(graph, "start", np.array([0]))
    added = nodes.op("Max", [wanted, start])
    pads = nodes.op("Concat", [start, added], {"axis": 0})
    count = nodes.op("Shape", [_input_ids(graph)], {"start": 1, "end": 2})
    return added, _Row(pads, start, count, _constant(graph, "axis", np.array([axis])))


def _positions(graph: ir.Graph, attentions: Sequence[ir.Node]) -> list[ir.Value]:
    """Return how many positions [1] the rotary tables have, of those that the operator reads."""
    tables = [node.inputs[COSINES] for node in attentions if len(node.inputs) > COSINES]
    lengths = [table.shape.numpy()[0] for table in tables if table is not None and table.shape is not None]
    return [_constant(graph, f"positions.{min(lengths)}", np.array([min(lengths)]))] if lengths else []


def _input_ids(graph: ir.Graph) -> ir.Value:
    return next(value for value in graph.inputs if value.name == INPUT_IDS)


def _cast(nodes: Tape, x: ir.Value | None, to: str) -> ir.Value:
    return nodes.op("Cast", [x], {"to": ir.DataType[to]})


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Return an initializer, made where there is none of that name."""
    if (known := f"second_row.{name}") in graph.initializers:
        return graph.initializers[known]
    tensor = ir.tensor(array, name=f"second_row.{name}")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value

"""Attention over keys and values in eight bits, by products of integers that read the cache once for a whole group.

ONNX Runtime's own GroupQueryAttention reads such a cache too, but converts it to floats anew for every query row of
every head, and takes three times as long as the float32 one for prompts. Here all rows and all query heads of a KV
head are the columns of one product with the keys, and the rows of one with the values.

- Keys are unsigned around 128 and values signed, because x86 multiplies unsigned by signed bytes. Before VNNI it adds
  two such products with saturation, which the ranges of `QUERY_MOST` and `LOW_MOST` keep from happening.
- Queries and keys are turned by one fixed orthogonal matrix first, which changes no score: afterwards no channel is
  much larger than the others, and rounding costs less (QuaRot, arXiv 2404.00456).
- Scales of keys, one a channel, go into the queries; those of values come behind the product.
- Queries are rounded row by row, by the largest value of each.
- Probabilities are two integers, the second for what the first one leaves: with one, all but the likeliest of a long
  text would be 0.

Integers add up without rounding, and each row has its own scale. So a row comes out the same, to the bit, however many
there are in a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from recycle_onnx.contract import DROPPED_ROWS
from recycle_onnx.export.int8_cache.products import KEY_ZERO, QUERY_MOST, Operands, attended
from recycle_onnx.export.int8_cache.run_nodes import QueryForm, RunNodes
from recycle_onnx.export.int8_cache.tape import GraphTape

OPSET = 24
"""The first with TensorScatter, which writes rows into a buffer in place."""
PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."

PAST_KEYS, PAST_VALUES, COSINES, SINES = 3, 4, 7, 8
"""Inputs of GroupQueryAttention, by their place; before them queries, keys and values."""


@dataclass(frozen=True)
class CacheScales:
    """The value of one step, for each channel [K, D] of a layer's keys and values."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]


def orthogonal(size: int) -> NDArray[np.float32]:
    """Return the matrix [D, D] that turns queries and keys: a Hadamard matrix where D is a power of 2."""
    if size & (size - 1):
        return np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    turn: NDArray[Any] = np.ones((1, 1))
    while len(turn) < size:
        turn = np.block([[turn, turn], [turn, -turn]])
    turned: NDArray[np.float32] = (turn / size**0.5).astype(np.float32)
    return turned


def with_int8_cache(model: ir.Model, scales: Sequence[CacheScales]) -> None:
    """Replace every GroupQueryAttention of a graph in the `ort` flavour; `scales` are those of its layers, in order.

    Past and present become buffers of one size, into which rows are written in place. A run has one text.
    """
    graph = model.graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    if not attentions:
        return
    past = attentions[0].inputs[PAST_KEYS]
    assert past is not None
    shape, runs = past.shape, _runs(graph, attentions)
    for node, own in zip(attentions, scales, strict=True):
        layer = _Layer(runs[node], node, own)
        y, *present = layer.build()
        graph.insert_before(node, layer.nodes)
        for old, new in zip(_behind_second_row(node), (y, *present), strict=True):
            new.name, new.type, new.shape = old.name, new.type or old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    for name, value in _caches(graph):
        value.dtype = ir.DataType.UINT8 if name.endswith("key") else ir.DataType.INT8
        value.shape = shape
    graph.opset_imports[""] = OPSET
    RemoveUnusedNodesPass()(model)


def _runs(graph: ir.Graph, attentions: Sequence[ir.Node]) -> dict[ir.Node, RunNodes]:
    """Make what each layer reads of a run; those with a window read by themselves if their buffers drop rows."""
    dropped = next((value for value in graph.inputs if value.name == DROPPED_ROWS), None)
    runs: dict[ir.Node, RunNodes] = {}
    for short in (False, True):
        nodes = [node for node in attentions if short == (dropped is not None and _form(node).window > 0)]
        if nodes:
            past = nodes[0].inputs[PAST_KEYS]
            assert past is not None
            run = RunNodes(graph, past, map(_form, nodes), dropped if short else None)
            graph.insert_before(attentions[0], run.nodes)
            runs |= dict.fromkeys(nodes, run)
    return runs


def _attribute(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _caches(graph: ir.Graph) -> Iterator[tuple[str, ir.Value]]:
    for value in (*graph.inputs, *graph.outputs):
        if str(value.name).startswith((PAST_PREFIX, PRESENT_PREFIX)):
            yield str(value.name), value


def _behind_second_row(node: ir.Node) -> list[ir.Value]:
    """Return what an attention gives, its first output without a second row that was added to a single one."""
    y, *present = node.outputs
    uses = [use.node for use in y.uses()]
    return [uses[0].outputs[0] if len(uses) == 1 and uses[0].op_type == "Slice" else y, *present[:2]]


def _before_second_row(x: ir.Value) -> ir.Value:
    """Return queries, keys or values without the second row; integers round a single row as they do several."""
    maker = x.producer()
    before = maker.inputs[0] if maker is not None and maker.op_type == "Pad" else x
    assert before is not None
    return before


def _form(node: ir.Node) -> QueryForm:
    attributes = node.attributes
    heads, kv_heads = (attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    return QueryForm(heads // kv_heads, _attribute(node, "local_window_size", -1))


class _Layer(GraphTape):
    """The nodes that take the place of one GroupQueryAttention."""

    def __init__(self, run: RunNodes, node: ir.Node, scales: CacheScales) -> None:
        self.layer = str(node.inputs[PAST_KEYS].name).removeprefix(PAST_PREFIX).removesuffix("key")  # type: ignore[union-attr]
        super().__init__(run.graph, f"int8_cache.{self.layer}")
        self.run, self.node, self.scales = run, node, scales
        self.heads, self.kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        self.size = scales.keys.shape[1]
        form = _form(node)
        self.group, self.seen = form.group, run.seen[form]

    def build(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Build output [1, S, heads·D], and present keys and values [1, K, R, D]."""
        query, key, value = self._parts()
        query, key = self._turned(*self._rotated(query, key))
        keys = self._appended(PAST_KEYS, key, "keys", self.scales.keys, KEY_ZERO)
        values = self._appended(PAST_VALUES, value, "values", self.scales.values, 0)
        columns = self.constant(f"{self.layer}values.columns", self.scales.values[None, :, None])
        y = attended(self, self.run, self.seen, Operands(*self._rounded(query), keys, values, columns, self._softcap))
        by_group = self.op("Reshape", [y, self.ints(self.kv_heads, -1, self.group * self.size)])
        by_row = self.op("Transpose", [by_group], {"perm": [1, 0, 2]})
        return self.op("Reshape", [by_row, self.ints(1, -1, self.heads * self.size)]), keys, values

    def _parts(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return queries, keys and values [1, S, heads·D], each by itself."""
        query, key, value = (x and _before_second_row(x) for x in self.node.inputs[:3])
        assert query is not None
        if key is not None and value is not None:
            return query, key, value
        keys = self.kv_heads * self.size
        sizes = self.ints(self.heads * self.size, keys, keys)
        query, key, value = self.op_multi_out("Split", [query, sizes], {"axis": -1}, num_outputs=3)
        return query, key, value

    def _rotated(self, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Rotate queries and keys where the attention did."""
        if not _attribute(self.node, "do_rotary"):
            return query, key
        tables = [self.node.inputs[COSINES], self.node.inputs[SINES]]
        attributes = {"interleaved": _attribute(self.node, "rotary_interleaved")}
        rotated = 2 * _columns(tables[0])
        if rotated != self.size:
            attributes["rotary_embedding_dim"] = rotated
        query, key = (
            self.microsoft("RotaryEmbedding", [x, self.run.positions, *tables], num_heads=heads, **attributes)
            for x, heads in ((query, self.heads), (key, self.kv_heads))
        )
        return query, key

    def _turned(self, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Turn queries and keys, those of all heads in one product: it has several rows always, and rounds alike."""
        sizes = [heads * self.size for heads in (self.heads, self.kv_heads)]
        both = self.op("Reshape", [self.op("Concat", [query, key], {"axis": -1}), self.ints(-1, self.size)])
        product = self.op("MatMul", [both, self.constant("turn", orthogonal(self.size))])
        turned = self.op("Reshape", [product, self.ints(1, -1, sum(sizes))])
        query, key = self.op_multi_out("Split", [turned, self.ints(*sizes)], {"axis": -1}, num_outputs=2)
        return query, key

    def _appended(self, place: int, x: ir.Value, name: str, scales: NDArray[np.float32], zero: int) -> ir.Value:
        """Round keys or values [1, S, K·D], and write them behind the past ones.

        Divided into steps first: ONNX Runtime rounds with a scale for each channel one value at a time.
        """
        in_steps = self.op("Mul", [x, self.constant(f"{self.layer}{name}", 1 / scales.reshape(-1))])
        dtype = np.uint8 if zero else np.int8
        rounded = self.op("QuantizeLinear", [in_steps, self.scalar(1.0), self.scalar(zero, dtype)])
        by_head = self.op("Reshape", [rounded, self.ints(1, -1, self.kv_heads, self.size)])
        heads_first = self.op("Transpose", [by_head], {"perm": [0, 2, 1, 3]})
        return self.op("TensorScatter", [self.node.inputs[place], heads_first, self.run.start], {"axis": 2})

    def _rounded(self, query: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Round queries row by row: give them [1, K, S·G, D], and the steps of rows [1, K, 1, S·G]."""
        rows = self._grouped(query)
        largest = self.op("ReduceMax", [self.op("Abs", [rows]), self.ints(1)], {"keepdims": 0})
        steps = self.op("Mul", [largest, self.scalar(1 / QUERY_MOST)])  # [K·S·G]
        rounded = self.op("QuantizeLinear", [rows, steps], {"axis": 0, "output_dtype": int(ir.DataType.INT8)})
        by_head = self.op("Reshape", [rounded, self.ints(1, self.kv_heads, -1, self.size)])
        return by_head, self.op("Reshape", [steps, self.ints(1, self.kv_heads, 1, -1)])

    def _grouped(self, query: ir.Value) -> ir.Value:
        """Return queries in steps of the keys as rows [K·S·G, D], those of a KV head behind each other."""
        attribute = self.node.attributes.get("scale")
        scale = attribute.as_float() if attribute else self.size**-0.5
        factors = np.repeat(self.scales.keys * np.float32(scale), self.group, axis=0).reshape(-1)
        scaled = self.op("Mul", [query, self.constant(f"{self.layer}queries", factors)])
        by_head = self.op("Reshape", [scaled, self.ints(-1, self.kv_heads, self.group * self.size)])
        heads_first = self.op("Transpose", [by_head], {"perm": [1, 0, 2]})
        return self.op("Reshape", [heads_first, self.ints(-1, self.size)])

    @property
    def _softcap(self) -> float:
        """Scores s are bounded to cap · tanh(s / cap); 0 where they are not."""
        attribute = self.node.attributes.get("softcap")
        return attribute.as_float() if attribute else 0.0


def _columns(table: ir.Value | None) -> int:
    assert table is not None
    assert table.shape is not None
    columns: int = table.shape.numpy()[1]
    return columns

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
from onnx_ir.tape import Tape

from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS

OPSET = 24
"""The first with TensorScatter, which writes rows into a buffer in place."""
KEY_ZERO = 128
"""What stands for 0 among keys."""
QUERY_MOST = 64
"""Largest rounded query: two products with keys of up to 255 are less than 2^15, where x86 without VNNI saturates."""
HIGH, LOW_MOST = 255, 126
"""Steps of a probability of 1, and of one such step; two products of the latter with values of 127 are below 2^15."""
LOW_ZERO = LOW_MOST // 2
"""What stands for 0 where a probability was rounded up."""
MICROSOFT = "com.microsoft"

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
    shape, shared = past.shape, _SharedNodes(graph, attentions)
    graph.insert_before(attentions[0], shared.nodes)
    for node, own in zip(attentions, scales, strict=True):
        layer = _Layer(shared, node, own)
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


class _Tape(Tape):
    """Nodes in the making, and constants of the graph that they are for."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.graph = graph

    def microsoft(self, name: str, inputs: Sequence[ir.Value | None], **attributes: int | float) -> ir.Value:
        """Add one of ONNX Runtime's own operators."""
        return self.op(name, inputs, attributes, domain=MICROSOFT)

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Return an initializer, made where there is none of that name."""
        name = f"int8_cache.{name}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            kind = ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        """Return a constant i64 vector."""
        return self.constant("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float, dtype: type[np.generic] = np.float32) -> ir.Value:
        """Return a constant scalar."""
        return self.constant(f"{np.dtype(dtype).name}.{value!r}", np.array(value, dtype))


class _SharedNodes(_Tape):
    """What all layers of a graph read of a run: where its rows go, their positions, and which keys they see."""

    def __init__(self, graph: ir.Graph, attentions: Sequence[ir.Node]) -> None:
        super().__init__(graph)
        inputs = {str(value.name): value for value in graph.inputs}
        length = self.op("ReduceSum", [inputs[ATTENTION_MASK], self.ints(1)], {"keepdims": 0})
        count = self.op("Shape", [inputs[INPUT_IDS]], {"start": 1, "end": 2})
        self.start = self.op("Sub", [length, count])  # [1]
        ends = [self.op("Squeeze", [value]) for value in (self.start, length)]
        queries = self.op("Range", [*ends, self.scalar(1, np.int64)])
        self.positions = self.op("Unsqueeze", [queries, self.ints(0)])  # [1, S]
        self._queries = self.op("Unsqueeze", [queries, self.ints(1)])  # [S, 1]
        past = attentions[0].inputs[PAST_KEYS]
        self._rows = self.op("Shape", [past], {"start": 2, "end": 3})  # [1]
        numbers = [self.scalar(0, np.int64), self.op("Squeeze", [self._rows]), self.scalar(1, np.int64)]
        self._keys = self.op("Range", numbers)  # [R]
        self.hidden = {shape: self._hide(*shape) for shape in map(_group_and_window, attentions)}

    def _hide(self, group: int, window: int) -> ir.Value:
        """Build what is added to scores [1, 1, S·G, R]: 0 where a query sees a key, minus infinity elsewhere."""
        seen = self.op("LessOrEqual", [self._keys, self._queries])
        if window > 0:
            first = self.op("Sub", [self._queries, self.scalar(window, np.int64)])
            seen = self.op("And", [seen, self.op("Greater", [self._keys, first])])
        added = self.op("Where", [seen, self.scalar(0.0), self.scalar(-np.inf)])
        by_head = self.op("Expand", [self.op("Unsqueeze", [added, self.ints(1)]), self.ints(1, group, 1)])
        shape = self.op("Concat", [self.ints(1, 1, -1), self._rows], {"axis": 0})
        return self.op("Reshape", [by_head, shape])


def _group_and_window(node: ir.Node) -> tuple[int, int]:
    attributes = node.attributes
    heads, kv_heads = (attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    return heads // kv_heads, _attribute(node, "local_window_size", -1)


class _Layer(_Tape):
    """The nodes that take the place of one GroupQueryAttention."""

    def __init__(self, run: _SharedNodes, node: ir.Node, scales: CacheScales) -> None:
        super().__init__(run.graph)
        self.run, self.node, self.scales = run, node, scales
        self.name = str(node.inputs[PAST_KEYS].name).removeprefix(PAST_PREFIX).removesuffix("key")  # type: ignore[union-attr]
        self.heads, self.kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        self.size = scales.keys.shape[1]
        shape = _group_and_window(node)
        self.group, self.hidden = shape[0], run.hidden[shape]

    def build(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Build output [1, S, heads·D], and present keys and values [1, K, R, D]."""
        query, key, value = self._parts()
        query, key = self._turned(*self._rotated(query, key))
        keys = self._appended(PAST_KEYS, key, "keys", self.scales.keys, KEY_ZERO)
        values = self._appended(PAST_VALUES, value, "values", self.scales.values, 0)
        weights = self.op("Softmax", [self._scores(query, keys)], {"axis": -1})
        y = self._weighted(weights, values)  # [1, K, S·G, D]
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
        """Round keys or values [1, S, K·D], and write them behind the past ones."""
        dtype = np.uint8 if zero else np.int8
        steps = self.constant(f"{self.name}{name}", scales.reshape(-1))
        zeros = self.constant(f"zeros.{np.dtype(dtype).name}.{scales.size}", np.full(scales.size, zero, dtype))
        rounded = self.op("QuantizeLinear", [x, steps, zeros], {"axis": 2})
        by_head = self.op("Reshape", [rounded, self.ints(1, -1, self.kv_heads, self.size)])
        heads_first = self.op("Transpose", [by_head], {"perm": [0, 2, 1, 3]})
        return self.op("TensorScatter", [self.node.inputs[place], heads_first, self.run.start], {"axis": 2})

    def _scores(self, query: ir.Value, keys: ir.Value) -> ir.Value:
        """Build scores [1, K, S·G, R], those of keys that are not to be seen minus infinity."""
        rows = self._grouped(query)
        largest = self.op("ReduceMax", [self.op("Abs", [rows]), self.ints(1)], {"keepdims": 0})
        steps = self.op("Mul", [largest, self.scalar(1 / QUERY_MOST)])  # [K·S·G]
        rounded = self.op("QuantizeLinear", [rows, steps], {"axis": 0, "output_dtype": int(ir.DataType.INT8)})
        by_head = self.op("Reshape", [rounded, self.ints(1, self.kv_heads, -1, self.size)])
        columns = self.op("Transpose", [by_head], {"perm": [0, 1, 3, 2]})
        scale = self.op("Reshape", [steps, self.ints(1, self.kv_heads, 1, -1)])
        zeros = self.scalar(KEY_ZERO, np.uint8), self.scalar(0, np.int8)
        product = self.microsoft("MatMulIntegerToFloat", [keys, columns, self.scalar(1.0), scale, *zeros])
        scores = self.op("Transpose", [product], {"perm": [0, 1, 3, 2]})
        if self._softcap:
            bounded = self.op("Tanh", [self.op("Mul", [scores, self.scalar(1 / self._softcap)])])
            scores = self.op("Mul", [bounded, self.scalar(self._softcap)])
        return self.op("Add", [scores, self.hidden])

    def _grouped(self, query: ir.Value) -> ir.Value:
        """Return queries in steps of the keys as rows [K·S·G, D], those of a KV head behind each other."""
        attribute = self.node.attributes.get("scale")
        scale = attribute.as_float() if attribute else self.size**-0.5
        factors = np.repeat(self.scales.keys * np.float32(scale), self.group, axis=0).reshape(-1)
        scaled = self.op("Mul", [query, self.constant(f"{self.name}queries", factors)])
        by_head = self.op("Reshape", [scaled, self.ints(-1, self.kv_heads, self.group * self.size)])
        heads_first = self.op("Transpose", [by_head], {"perm": [1, 0, 2]})
        return self.op("Reshape", [heads_first, self.ints(-1, self.size)])

    @property
    def _softcap(self) -> float:
        """Scores s are bounded to cap · tanh(s / cap); 0 where they are not."""
        attribute = self.node.attributes.get("softcap")
        return attribute.as_float() if attribute else 0.0

    def _weighted(self, weights: ir.Value, values: ir.Value) -> ir.Value:
        """Build probabilities [1, K, S·G, R] times values, as two products: in steps, and what those leave."""
        step, small = self.scalar(1 / HIGH), self.scalar(1 / (HIGH * LOW_MOST))
        none, low_zero = self.scalar(0, np.uint8), self.scalar(LOW_ZERO, np.uint8)
        high = self.op("QuantizeLinear", [weights, step, none])
        left = self.op("Sub", [weights, self.op("DequantizeLinear", [high, step, none])])
        low = self.op("QuantizeLinear", [left, small, low_zero])
        scale = self.constant(f"{self.name}values.columns", self.scales.values[None, :, None])
        zero = self.scalar(0, np.int8)
        products = (
            self.microsoft("MatMulIntegerToFloat", [x, values, steps, scale, zeros, zero])
            for x, steps, zeros in ((high, step, none), (low, small, low_zero))
        )
        return self.op("Add", [*products])


def _columns(table: ir.Value | None) -> int:
    assert table is not None
    assert table.shape is not None
    columns: int = table.shape.numpy()[1]
    return columns

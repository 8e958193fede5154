"""Graphs for any runtime: operators of ONNX itself only, of opset 24.

Rows of a batch may have padding before their text, or holes in it: whatever the mask leaves out is not seen, and does
not count as a position. T is the column behind the mask's last one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import onnx_ir as ir
from onnxscript import OpBuilder

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.checkpoint.base import Layer, Rope
from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, GraphSpec
from recycle_onnx.export.graph import Cache, DecoderGraph, Projected

HEADS_FIRST = [0, 2, 1, 3]
"""The permutation from [B, S, heads, D] to [B, heads, S, D], and back."""


class _Buffers(NamedTuple):
    """Where a call's tokens go in key-value buffers: the first one to row `write_at` [B], the last before `end` [1].

    `has_room` [1] tells whether there are so many rows.
    """

    write_at: ir.Value
    end: ir.Value
    has_room: ir.Value


class StandardGraph(DecoderGraph):
    """A graph with Attention over the first T rows of a buffer that TensorScatter writes into, or that grows."""

    opsets = {"": 24}  # noqa: RUF012
    ir_version = 12

    def __init__(self, spec: GraphSpec, config: BaseConfig) -> None:
        super().__init__(spec, config)
        self._masks: dict[int | None, ir.Value] = {}
        self._buffers: dict[bool, _Buffers] = {}
        self._lengths()

    def _lengths(self) -> None:
        """Compute lengths from the mask's values: `start` … `end` - 1 are the columns of this call's tokens."""
        op, ids, mask = self.op, self.inputs[INPUT_IDS], self.inputs[ATTENTION_MASK]
        width = op.Squeeze(op.Shape(mask, start=1, end=2))
        # Counted from 1: times the mask, the largest is then the column behind its last one.
        columns = op.Range(self.scalar(1), op.Add(width, self.scalar(1)), self.scalar(1))
        self._end = op.Reshape(op.ReduceMax(op.Mul(mask, columns), keepdims=0), self.ints(1))
        self._start = op.Sub(self._end, op.Shape(ids, start=1, end=2))
        self._mask = op.Slice(mask, self.ints(0), self._end, self.ints(1))
        self._key_positions = op.Sub(op.CumSum(self._mask, self.scalar(1)), self.scalar(1))
        self._query_positions = op.Slice(self._key_positions, self._start, self._end, self.ints(1))

    @cached_property
    def positions(self) -> ir.Value:
        """Positions [B, S] of the tokens of this call: how many tokens of their row come before."""
        # Padding before a text would sit at -1, for which the rotary tables have no row.
        positions: ir.Value = self.op.Max(self._query_positions, self.scalar(0))
        return positions

    def add_norm(self, x: ir.Value, delta: ir.Value, parameters: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
        """Add first, and normalise by another operator."""
        total = self.op.Add(x, delta)
        return self.norm(total, parameters), total

    def attend(self, query: Projected, layer: Layer, past: Cache) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Build Attention over as many rows of the buffers as are valid: it would compute with all of them."""
        op, config = self.op, self.config
        q, k, v = self._by_head(query)
        if layer.rope:
            q, k = (self._turned(x, layer.rope) for x in (q, k))
        window = self.window(layer)
        buffers = self._buffers_of(past, drops_rows=window is not None)
        present = self._appended(past, (k, v), buffers)
        valid = (op.Slice(x, self.ints(0), buffers.end, self.ints(2)) for x in present)
        attributes: dict[str, Any] = {"scale": layer.scale}
        if config.attention_softcap is not None:
            attributes["softcap"] = config.attention_softcap
        y = op.Transpose(op.Attention(q, *valid, self._allowed(window), **attributes), perm=HEADS_FIRST)
        return op.Reshape(y, self.ints(0, 0, -1)), *present

    def rows_product(self, x: ir.Value, table: ir.Value) -> ir.Value:
        """Build Gemm, which reads the table as it is stored, and takes matrices only."""
        op, config = self.op, self.config
        product = op.Gemm(op.Reshape(x, self.ints(-1, config.hidden_size)), table, transB=1)
        shape = op.Concat(op.Shape(x, start=0, end=2), self.ints(-1), axis=0)
        return op.Reshape(product, shape)  # type: ignore[no-any-return]

    def _by_head(self, query: Projected) -> Projected:
        """Split into queries, keys and values [B, heads, S, D]."""
        op, config = self.op, self.config
        heads = tuple(
            op.Transpose(op.Reshape(x, self.ints(0, 0, -1, config.head_dim)), perm=HEADS_FIRST) for x in query
        )
        if len(heads) == 3:
            return heads
        sizes = self.ints(config.num_heads, config.num_kv_heads, config.num_kv_heads)
        return tuple(op.Split(*heads, sizes, axis=1, _outputs=3))

    def rotated(self, query: Projected, rope: Rope) -> Projected:
        """Build RotaryEmbedding for heads that lie beside each other."""
        q, k, value = query
        config = self.config
        return (
            self._turned(q, rope, num_heads=config.num_heads),
            self._turned(k, rope, num_heads=config.num_kv_heads),
            value,
        )

    def _turned(self, x: ir.Value, rope: Rope, **attributes: int) -> ir.Value:
        attributes["interleaved"] = int(rope.interleaved)
        if 2 * len(rope.frequencies) != self.config.head_dim:
            attributes["rotary_embedding_dim"] = 2 * len(rope.frequencies)
        rotated: ir.Value = self.op.RotaryEmbedding(x, *self.rotary_tables(rope), self.positions, **attributes)
        return rotated

    def _buffers_of(self, past: Cache, drops_rows: bool) -> _Buffers:
        """Compute where this call's tokens go in buffers with all rows, or in those that drop their first ones."""
        if drops_rows not in self._buffers:
            op, start, end = self.op, self._start, self._end
            if drops_rows:
                start, end = (op.Sub(index, op.Reshape(self.dropped, self.ints(1))) for index in (start, end))
            at = op.Expand(start, op.Shape(self.inputs[INPUT_IDS], start=0, end=1))
            has_room = op.GreaterOrEqual(op.Shape(past[0], start=2, end=3), end)
            self._buffers[drops_rows] = _Buffers(at, end, has_room)
        return self._buffers[drops_rows]

    def _appended(self, past: Cache, new: Cache, buffers: _Buffers) -> Cache:
        """Write into buffers that have room, in place where past and present are the same memory; else make longer."""
        at, pairs = buffers.write_at, list(zip(past, new, strict=True))

        def branch(kind: str, appended: Callable[[OpBuilder, ir.Value, ir.Value], ir.Value]) -> ir.Graph:
            names = [f"{kind}.{old.name}" for old in past]
            outputs = [ir.Value(name=name, type=old.type) for name, old in zip(names, past, strict=True)]
            made: ir.Graph = self.builder.subgraph(
                lambda op: [appended(op, old, x) for old, x in pairs], [], outputs, name=kind
            )
            return made

        static = branch("static", lambda op, old, x: op.TensorScatter(old, x, at, axis=2))
        growing = branch("growing", lambda op, old, x: op.Concat(old, x, axis=2))
        key, value = self.op.If(buffers.has_room, then_branch=static, else_branch=growing, _outputs=2)
        return key, value

    def _allowed(self, window: int | None) -> ir.Value:
        """Compute which keys a token sees [B, 1, S, T]: itself, and what the mask has of those before, in its window.

        With a window they are those that its layers' buffers still have.

        (Padding sees itself: were there nothing to see, some kernels would give NaN, and its values would be NaN too.)
        """
        if window not in self._masks:
            op = self.op
            end, start = (op.Squeeze(value) for value in (self._end, self._start))
            keys = op.Range(self.scalar(0), end, self.scalar(1))
            queries = op.Unsqueeze(op.Range(start, end, self.scalar(1)), self.ints(1))
            seen = op.And(op.Less(keys, queries), op.Unsqueeze(op.Cast(self._mask, to=ir.DataType.BOOL), self.ints(1)))
            if window is not None:
                seen = op.And(seen, op.Less(self._distances(), self.scalar(window)))
            seen = op.Or(seen, op.Equal(keys, queries))
            if window is not None:
                seen = op.Slice(seen, op.Reshape(self.dropped, self.ints(1)), self._end, self.ints(2))
            self._masks[window] = op.Unsqueeze(seen, self.ints(1))
        return self._masks[window]

    def _distances(self) -> ir.Value:
        """Compute how many positions each key lies before each token [B, S, T]."""
        op = self.op
        queries, keys = (
            op.Unsqueeze(positions, self.ints(axis))
            for positions, axis in ((self._query_positions, 2), (self._key_positions, 1))
        )
        distances: ir.Value = op.Sub(queries, keys)
        return distances

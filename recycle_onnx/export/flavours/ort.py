"""Graphs for ONNX Runtime: ONNX operators of opset 23, and com.microsoft's fused ones."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.checkpoint.base import Layer, Rope
from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export.graph import Cache, DecoderGraph, Projected

HEAD_SIZES = 8
"""The kernel takes heads of a multiple of so many values."""


class OrtGraph(DecoderGraph):
    """A graph with GroupQueryAttention over shared buffers, and norms that add; no padding on the left."""

    opsets = {"": 23, "com.microsoft": 1}  # noqa: RUF012
    ir_version = 11

    def __init__(self, spec: GraphSpec, config: BaseConfig) -> None:
        if config.head_dim % HEAD_SIZES:
            raise InputError(
                f"head_dim is {config.head_dim}; GroupQueryAttention takes a multiple of {HEAD_SIZES}: "
                "export it as --flavour standard"
            )
        super().__init__(spec, config)
        self.microsoft = self.builder.opset("com.microsoft", 1)
        self._lengths()

    def _lengths(self) -> None:
        """Compute lengths from the mask's values, never from shapes, so that a mask may be wider than the text."""
        op, mask = self.op, self.inputs[ATTENTION_MASK]
        length = op.ReduceSum(mask, self.ints(1), keepdims=0)
        # What GroupQueryAttention calls `seqlens_k` is no length, but the place of a text's last token.
        self.last_index = op.Cast(op.Sub(length, self.ints(1)), to=ir.DataType.INT32)
        self.total = op.Cast(op.ReduceMax(length, keepdims=0), to=ir.DataType.INT32)
        self._length = length

    @cached_property
    def _shorter(self) -> tuple[ir.Value, ir.Value]:
        """The same two for buffers that have dropped their first rows."""
        dropped = self.op.Cast(self.dropped, to=ir.DataType.INT32)
        return self.op.Sub(self.last_index, dropped), self.op.Sub(self.total, dropped)

    @cached_property
    def positions(self) -> ir.Value:
        """Positions [B, S] of the tokens of this call: length - S … length - 1."""
        op, length = self.op, self._length
        count = op.Squeeze(op.Shape(self.inputs[INPUT_IDS], start=1, end=2))
        offsets = op.Range(self.scalar(0), count, self.scalar(1))
        first = op.Unsqueeze(op.Sub(length, count), self.ints(1))
        positions: ir.Value = op.Max(op.Add(first, op.Unsqueeze(offsets, self.ints(0))), self.ints(0))
        return positions

    def add_norm(self, x: ir.Value, delta: ir.Value, parameters: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
        """Add and normalise in one pass, by the operators with Skip in their name."""
        config, microsoft = self.config.norm, self.microsoft
        rms, layer = microsoft.SkipSimplifiedLayerNormalization, microsoft.SkipLayerNormalization
        operator = rms if config.kind == "rms" else layer
        # The two outputs between, mean and deviation, are for training.
        normalised, _, _, total = operator(x, delta, *parameters, epsilon=config.eps, _outputs=4)
        return normalised, total

    def attend(self, query: Projected, layer: Layer, past: Cache) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Build GroupQueryAttention, which rotates too where its CPU kernel can.

        It takes a row of a buffer for a position, so where rows are dropped others rotate.
        """
        rope, drops_rows = layer.rope, self.window(layer) is not None
        fused = rope is not None and not drops_rows and len(rope.frequencies) % 8 == 0  # else the kernel refuses
        if rope and not fused:
            query = self.rotated(query, rope)
        separate = query if len(query) == 3 else (*query, None, None)
        tables = self.rotary_tables(rope) if rope and fused else ()
        lengths = self._shorter if drops_rows else (self.last_index, self.total)
        y, key, value = self.microsoft.GroupQueryAttention(
            *separate, *past, *lengths, *tables, **self._attributes(layer, fused), _outputs=3
        )
        return y, key, value

    def rows_product(self, x: ir.Value, table: ir.Value) -> ir.Value:
        """Build FusedMatMul, which reads the table as it is stored."""
        product: ir.Value = self.microsoft.FusedMatMul(x, table, transB=1)
        return product

    def _attributes(self, layer: Layer, fused: bool) -> dict[str, Any]:
        config = self.config
        attributes: dict[str, Any] = {
            "do_rotary": int(fused),
            "num_heads": config.num_heads,
            "kv_num_heads": config.num_kv_heads,
        }
        if fused and layer.rope and layer.rope.interleaved:
            attributes["rotary_interleaved"] = 1
        if layer.scale != config.head_dim**-0.5:
            attributes["scale"] = layer.scale
        if (window := self.window(layer)) is not None:
            attributes["local_window_size"] = window
        if config.attention_softcap is not None:
            attributes["softcap"] = config.attention_softcap
        return attributes

    def rotated(self, query: Projected, rope: Rope) -> Projected:
        """Build RotaryEmbedding, which takes any even number of values of a head."""
        config = self.config
        attributes: dict[str, int] = {"interleaved": 1} if rope.interleaved else {}
        if 2 * len(rope.frequencies) != config.head_dim:
            attributes["rotary_embedding_dim"] = 2 * len(rope.frequencies)
        q, k, value = query if len(query) == 3 else self.split(*query)
        tables = self.rotary_tables(rope)
        q, k = (
            self.microsoft.RotaryEmbedding(x, self.positions, *tables, num_heads=heads, **attributes)
            for x, heads in ((q, config.num_heads), (k, config.num_kv_heads))
        )
        return q, k, value

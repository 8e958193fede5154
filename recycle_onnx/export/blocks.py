"""The parts of a Llama decoder as ONNX operators: norm, attention, feed-forward, layer, head."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from recycle_onnx.checkpoint.weights import Weights
from recycle_onnx.export.graph import INT64_MAX, DecoderGraph


def norm(graph: DecoderGraph, x: ir.Value, weights: Weights, name: str) -> ir.Value:
    """RMSNormalization (opset 23) of x [B, S, H]."""
    weight = graph.weight(name, weights.float32(name))
    normalised: ir.Value = graph.op.RMSNormalization(x, weight, axis=-1, epsilon=graph.config.rms_norm_eps)
    return normalised


def add_norm(
    graph: DecoderGraph, x: ir.Value, delta: ir.Value | None, weights: Weights, name: str
) -> tuple[ir.Value, ir.Value]:
    """x + delta, normalised, and the sum itself: SkipSimplifiedLayerNormalization does both in one pass."""
    if delta is None:
        return norm(graph, x, weights, name), x
    weight = graph.weight(name, weights.float32(name))
    normalised, _, _, total = graph.microsoft.SkipSimplifiedLayerNormalization(
        x, delta, weight, epsilon=graph.config.rms_norm_eps, _outputs=4
    )
    return normalised, total


def attention(
    graph: DecoderGraph, x: ir.Value, weights: Weights, prefix: str, past: tuple[ir.Value, ir.Value]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """GroupQueryAttention on packed projections; gives output [B, S, heads·D], present key and value."""
    names = [f"{prefix}{part}_proj.weight" for part in "qkv"]
    packed = graph.linear(x, weights, *names, store_as=f"{prefix}qkv_proj.weight")
    sizes = {"num_heads": graph.config.num_heads, "kv_num_heads": graph.config.num_kv_heads, "_outputs": 3}
    lengths = (graph.last_index, graph.total)
    if graph.fused_rotary:
        y, key, value = graph.microsoft.GroupQueryAttention(
            packed, None, None, *past, *lengths, graph.cos, graph.sin, do_rotary=1, **sizes
        )
    else:
        q, k, v = _split_and_rotate(graph, packed)
        y, key, value = graph.microsoft.GroupQueryAttention(q, k, v, *past, *lengths, do_rotary=0, **sizes)
    return graph.linear(y, weights, f"{prefix}o_proj.weight"), key, value


def _split_and_rotate(graph: DecoderGraph, packed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    config = graph.config
    keys = config.num_kv_heads * config.head_dim
    sizes = graph.ints(config.num_heads * config.head_dim, keys, keys)
    q, k, v = graph.op.Split(packed, sizes, axis=-1, _outputs=3)
    q, k = (
        graph.microsoft.RotaryEmbedding(x, graph.positions, graph.cos, graph.sin, num_heads=heads)
        for x, heads in ((q, config.num_heads), (k, config.num_kv_heads))
    )
    return q, k, v


def feed_forward(graph: DecoderGraph, x: ir.Value, weights: Weights, prefix: str) -> ir.Value:
    """down(silu(gate(x)) · up(x))."""
    gate = graph.linear(x, weights, f"{prefix}gate_proj.weight")
    up = graph.linear(x, weights, f"{prefix}up_proj.weight")
    activated = graph.op.Mul(graph.op.Mul(gate, graph.op.Sigmoid(gate)), up)
    return graph.linear(activated, weights, f"{prefix}down_proj.weight")


class Stack(NamedTuple):
    """What a stack of layers gives: states after the final norm [B, S, H], present keys and values.

    `streams[n]` [B, S, H] is the residual stream after n layers.
    """

    hidden: ir.Value
    present: list[ir.Value]
    streams: list[ir.Value]


def layers(graph: DecoderGraph, x: ir.Value, weights: Weights, prefix: str, final_norm: str) -> Stack:
    """All decoder layers and the final norm."""
    past = [graph.inputs[name] for name in graph.spec.past_names()]
    delta: ir.Value | None = None
    present: list[ir.Value] = []
    streams: list[ir.Value] = []
    for index in range(graph.spec.num_layers):
        name = f"{prefix}{index}."
        normalised, x = add_norm(graph, x, delta, weights, f"{name}input_layernorm.weight")
        streams.append(x)
        cache = (past[2 * index], past[2 * index + 1])
        delta, key, value = attention(graph, normalised, weights, f"{name}self_attn.", cache)
        normalised, x = add_norm(graph, x, delta, weights, f"{name}post_attention_layernorm.weight")
        delta = feed_forward(graph, normalised, weights, f"{name}mlp.")
        present += [key, value]
    hidden, x = add_norm(graph, x, delta, weights, final_norm)
    return Stack(hidden, present, [*streams, x])


def logits(graph: DecoderGraph, hidden: ir.Value, head: ir.ExternalTensor) -> ir.Value:
    """Logits of the last `logits_to_keep` rows (0: of all), with the head [V, H] stored as the embedding is."""
    start = graph.op.Reshape(graph.op.Neg(graph.keep), graph.ints(1))
    kept = graph.op.Slice(hidden, start, graph.ints(INT64_MAX), graph.ints(1))
    product: ir.Value = graph.microsoft.FusedMatMul(kept, graph.shared(head), transB=1)
    return product

"""The parts of a decoder as ONNX operators: embedding, norms, attention, feed-forward, layers, head."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from recycle_onnx.checkpoint.base import Layer
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import INPUT_IDS
from recycle_onnx.export.graph import INT64_MAX, DecoderGraph
from recycle_onnx.export.lazy import LazyWeight, of_array


def embed(graph: DecoderGraph, tokens: LazyWeight, positions: LazyWeight | None) -> ir.Value:
    """What the base's first layer reads [B, S, H]: rows of the table `tokens`, and of learned `positions` if any.

    (In the module too a token is embedded at its row's position.)
    """
    op, config = graph.op, graph.config
    x = graph.scaled(op.Gather(graph.weight(tokens), graph.inputs[INPUT_IDS]), config.embedding_scale)
    if positions is None:
        return x
    rows = graph.positions
    if config.position_offset:
        rows = op.Add(rows, graph.scalar(config.position_offset))
    total: ir.Value = op.Add(x, op.Gather(graph.weight(positions), rows))
    return total


def norm(graph: DecoderGraph, x: ir.Value, weights: Tensors, name: str) -> ir.Value:
    """RMSNormalization (opset 23) of x [B, S, H], whatever norms the base has."""
    weight = graph.weight(of_array(name, weights.float32(name)))
    normalised: ir.Value = graph.op.RMSNormalization(x, weight, axis=-1, epsilon=graph.config.norm.eps)
    return normalised


def layer_norm(graph: DecoderGraph, x: ir.Value, weights: Tensors, name: str) -> ir.Value:
    """The base's kind of norm over the last axis of x; `name` without `.weight`."""
    config = graph.config.norm
    operator = graph.op.RMSNormalization if config.kind == "rms" else graph.op.LayerNormalization
    normalised: ir.Value = operator(x, *_norm_weights(graph, weights, name), axis=-1, epsilon=config.eps)
    return normalised


def add_norm(
    graph: DecoderGraph, x: ir.Value, delta: ir.Value | None, weights: Tensors, name: str
) -> tuple[ir.Value, ir.Value]:
    """x + delta, normalised, and the sum itself: the operators with Skip in their name do both in one pass."""
    if delta is None:
        return layer_norm(graph, x, weights, name), x
    config, microsoft = graph.config.norm, graph.microsoft
    operator = microsoft.SkipSimplifiedLayerNormalization if config.kind == "rms" else microsoft.SkipLayerNormalization
    parameters = _norm_weights(graph, weights, name)
    normalised, _, _, total = operator(x, delta, *parameters, epsilon=config.eps, _outputs=4)
    return normalised, total


def _norm_weights(graph: DecoderGraph, weights: Tensors, name: str) -> list[ir.Value]:
    config = graph.config.norm
    weight = weights.float32(f"{name}.weight")
    found = {f"{name}.weight": weight + np.float32(1) if config.plus_one else weight}
    if config.bias:
        found[f"{name}.bias"] = weights.float32(f"{name}.bias")
    return [graph.weight(of_array(*item)) for item in found.items()]


def attention(
    graph: DecoderGraph, x: ir.Value, weights: Tensors, prefix: str, layer: Layer, past: tuple[ir.Value, ir.Value]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """GroupQueryAttention on packed projections; gives output [B, S, heads·D], present key and value."""
    config, rope = graph.config, layer.rope
    names = [f"{prefix}{part}_proj.weight" for part in "qkv"]
    packed = graph.linear(x, weights, *names, store_as=f"{prefix}qkv_proj.weight", bias=config.qkv_bias)
    fused = rope is not None and len(rope.frequencies) % 8 == 0  # else GroupQueryAttention's CPU kernel refuses
    query: tuple[ir.Value | None, ...] = (packed, None, None)
    if config.qk_norm or (rope and not fused):
        query = _split(graph, packed)
    if config.qk_norm:
        query = _normalised(graph, query, weights, prefix)
    if rope and not fused:
        query = _rotated(graph, query, layer)
    tables = graph.rotary_tables(rope) if rope and fused else ()
    y, key, value = graph.microsoft.GroupQueryAttention(
        *query, *past, graph.last_index, graph.total, *tables, **_attributes(graph, layer, fused), _outputs=3
    )
    name = f"{prefix}o_proj.weight"
    out = graph.linear(y, weights, name, bias=config.output_bias, scale=config.residual_scale)
    return out, key, value


def _attributes(graph: DecoderGraph, layer: Layer, fused: bool) -> dict[str, Any]:
    config = graph.config
    found: dict[str, Any] = {
        "do_rotary": int(fused),
        "num_heads": config.num_heads,
        "kv_num_heads": config.num_kv_heads,
    }
    if fused and layer.rope and layer.rope.interleaved:
        found["rotary_interleaved"] = 1
    if layer.scale != config.head_dim**-0.5:
        found["scale"] = layer.scale
    if layer.window is not None:
        found["local_window_size"] = layer.window
    if config.attention_softcap is not None:
        found["softcap"] = config.attention_softcap
    return found


def _split(graph: DecoderGraph, packed: ir.Value) -> tuple[ir.Value, ...]:
    config = graph.config
    keys = config.num_kv_heads * config.head_dim
    sizes = graph.ints(config.num_heads * config.head_dim, keys, keys)
    parts: tuple[ir.Value, ...] = tuple(graph.op.Split(packed, sizes, axis=-1, _outputs=3))
    return parts


def _normalised(
    graph: DecoderGraph, query: tuple[ir.Value | None, ...], weights: Tensors, prefix: str
) -> tuple[ir.Value | None, ...]:
    """Norms on queries and keys: of their whole width, or of each head, the last axis of [B, S, heads, D]."""
    q, k, value = query
    if graph.config.qk_norm == "width":
        q, k = (layer_norm(graph, x, weights, f"{prefix}{part}_norm") for x, part in ((q, "q"), (k, "k")) if x)
        return q, k, value
    op, size = graph.op, graph.config.head_dim
    by_head = (op.Reshape(x, graph.ints(0, 0, -1, size)) for x in (q, k))
    done = (layer_norm(graph, x, weights, f"{prefix}{part}_norm") for x, part in zip(by_head, "qk", strict=True))
    q, k = (op.Reshape(x, graph.ints(0, 0, -1)) for x in done)
    return q, k, value


def _rotated(graph: DecoderGraph, query: tuple[ir.Value | None, ...], layer: Layer) -> tuple[ir.Value | None, ...]:
    config, rope = graph.config, layer.rope
    assert rope is not None
    attributes: dict[str, int] = {"interleaved": 1} if rope.interleaved else {}
    if 2 * len(rope.frequencies) != config.head_dim:
        attributes["rotary_embedding_dim"] = 2 * len(rope.frequencies)
    tables = graph.rotary_tables(rope)
    q, k, value = query
    q, k = (
        graph.microsoft.RotaryEmbedding(x, graph.positions, *tables, num_heads=heads, **attributes)
        for x, heads in ((q, config.num_heads), (k, config.num_kv_heads))
    )
    return q, k, value


def feed_forward(graph: DecoderGraph, x: ir.Value, weights: Tensors, prefix: str) -> ir.Value:
    """down(act(gate(x)) · up(x)), or down(act(up(x)))."""
    config = graph.config
    bias = config.feed_forward_bias
    inner = graph.linear(x, weights, f"{prefix}{'gate' if config.gated else 'up'}_proj.weight", bias=bias)
    if config.gated:
        up = graph.linear(x, weights, f"{prefix}up_proj.weight", bias=bias)
        activated = graph.op.Mul(activation(graph, inner), up)
    else:
        activated = activation(graph, inner)
    return graph.linear(activated, weights, f"{prefix}down_proj.weight", bias=bias, scale=config.residual_scale)


def activation(graph: DecoderGraph, x: ir.Value) -> ir.Value:
    """The base's activation."""
    op, kind = graph.op, graph.config.activation
    activated: ir.Value
    if kind == "silu":
        activated = op.Mul(x, op.Sigmoid(x))
    elif kind == "relu":
        activated = op.Relu(x)
    else:
        activated = op.Gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
    return activated


class Stack(NamedTuple):
    """What a stack of layers gives: states after the final norm [B, S, H], present keys and values.

    `streams[n]` [B, S, H] is the residual stream after n layers.
    """

    hidden: ir.Value
    present: list[ir.Value]
    streams: list[ir.Value]


def layers(graph: DecoderGraph, x: ir.Value, weights: Tensors, prefix: str, final_norm: str) -> Stack:
    """All decoder layers and the final norm.

    `delta` is what a sublayer adds, kept apart from the residual stream x, so that the sum goes with the next norm.
    """
    past = [graph.inputs[name] for name in graph.spec.past_names()]
    delta: ir.Value | None = None
    present: list[ir.Value] = []
    streams: list[ir.Value] = []
    for index, layer in enumerate(graph.config.layers):
        name = f"{prefix}{index}."
        normalised, x = _before(graph, x, delta, weights, f"{name}input_layernorm")
        streams.append(x)
        cache = (past[2 * index], past[2 * index + 1])
        delta, key, value = attention(graph, normalised, weights, f"{name}self_attn.", layer, cache)
        delta = _behind(graph, delta, weights, f"{name}attention_output_norm")
        if graph.config.placement == "parallel":
            normalised = layer_norm(graph, x, weights, f"{name}post_attention_layernorm")
            delta = graph.op.Add(delta, feed_forward(graph, normalised, weights, f"{name}mlp."))
        else:
            normalised, x = _before(graph, x, delta, weights, f"{name}post_attention_layernorm")
            delta = feed_forward(graph, normalised, weights, f"{name}mlp.")
            delta = _behind(graph, delta, weights, f"{name}feed_forward_output_norm")
        present += [key, value]
    hidden, x = add_norm(graph, x, delta, weights, final_norm)
    return Stack(hidden, present, [*streams, x])


def _before(
    graph: DecoderGraph, x: ir.Value, delta: ir.Value | None, weights: Tensors, name: str
) -> tuple[ir.Value, ir.Value]:
    """What a sublayer reads, and the residual stream that it adds to."""
    if graph.config.placement != "post":
        return add_norm(graph, x, delta, weights, name)
    total = x if delta is None else graph.op.Add(x, delta)
    return total, total


def _behind(graph: DecoderGraph, delta: ir.Value, weights: Tensors, name: str) -> ir.Value:
    """What a sublayer adds."""
    return layer_norm(graph, delta, weights, name) if graph.config.placement in ("post", "both") else delta


def logits(graph: DecoderGraph, hidden: ir.Value, head: LazyWeight) -> ir.Value:
    """Logits of the last `logits_to_keep` rows (0: of all), with the head [V, H] stored as the embedding is."""
    start = graph.op.Reshape(graph.op.Neg(graph.keep), graph.ints(1))
    kept = graph.op.Slice(hidden, start, graph.ints(INT64_MAX), graph.ints(1))
    kept = graph.scaled(kept, graph.config.logit_scale)
    product = graph.microsoft.FusedMatMul(kept, graph.weight(head), transB=1)
    return graph.capped(product, graph.config.logit_softcap)

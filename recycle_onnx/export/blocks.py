"""The parts of a decoder as ONNX operators: embedding, norms, attention, feed-forward, layers, head."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from recycle_onnx.checkpoint.base import Layer
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import INPUT_IDS
from recycle_onnx.export.graph import INT64_MAX, Cache, DecoderGraph, Projected
from recycle_onnx.export.lazy import LazyWeight, of_array


def embed(graph: DecoderGraph, tokens: LazyWeight, positions: LazyWeight | None) -> ir.Value:
    """Build what the base's first layer reads [B, S, H]: rows of the table `tokens`, and of learned `positions` if any.

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


def norm(graph: DecoderGraph, x: ir.Value, weights: Tensors, name: str, eps: float | None = None) -> ir.Value:
    """Build RMSNormalization (opset 23) of x [B, S, H], whatever norms the base has; `eps` is the graph's otherwise."""
    weight = graph.weight(of_array(name, weights.float32(name)))
    epsilon = graph.config.norm.eps if eps is None else eps
    normalised: ir.Value = graph.op.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)
    return normalised


def layer_norm(graph: DecoderGraph, x: ir.Value, weights: Tensors, name: str) -> ir.Value:
    """Build the base's kind of norm over the last axis of x; `name` is without `.weight`."""
    return graph.norm(x, _norm_weights(graph, weights, name))


def add_norm(
    graph: DecoderGraph, x: ir.Value, delta: ir.Value | None, weights: Tensors, name: str
) -> tuple[ir.Value, ir.Value]:
    """Build x + delta, normalised, and the sum itself."""
    parameters = _norm_weights(graph, weights, name)
    return (graph.norm(x, parameters), x) if delta is None else graph.add_norm(x, delta, parameters)


def _norm_weights(graph: DecoderGraph, weights: Tensors, name: str) -> list[ir.Value]:
    config = graph.config.norm
    weight = weights.float32(f"{name}.weight")
    arrays = {f"{name}.weight": weight + np.float32(1) if config.plus_one else weight}
    if config.bias:
        arrays[f"{name}.bias"] = weights.float32(f"{name}.bias")
    return [graph.weight(of_array(*item)) for item in arrays.items()]


def attention(
    graph: DecoderGraph, x: ir.Value, weights: Tensors, prefix: str, layer: Layer, past: Cache
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Build attention over packed projections; return output [B, S, H], present key and value."""
    config = graph.config
    names = [f"{prefix}{part}_proj.weight" for part in "qkv"]
    query: Projected = (graph.linear(x, weights, *names, store_as=f"{prefix}qkv_proj.weight", bias=config.qkv_bias),)
    if config.qk_norm:
        query = graph.split(*query)
        # These norms come after the rotation, which so cannot be left to the attention.
        if config.qk_norm == "rotated_head" and layer.rope:
            query, layer = graph.rotated(query, layer.rope), replace(layer, rope=None)
        query = _normalised(graph, query, weights, prefix)
    y, key, value = graph.attend(query, layer, past)
    name = f"{prefix}o_proj.weight"
    out = graph.linear(y, weights, name, bias=config.output_bias, scale=config.residual_scale)
    return out, key, value


def _normalised(graph: DecoderGraph, query: Projected, weights: Tensors, prefix: str) -> Projected:
    """Normalise queries and keys: their whole width, or each head, the last axis of [B, S, heads, D]."""
    q, k, value = query
    if graph.config.qk_norm == "width":
        q, k = (layer_norm(graph, x, weights, f"{prefix}{part}_norm") for x, part in ((q, "q"), (k, "k")))
        return q, k, value
    op, size = graph.op, graph.config.head_dim
    by_head = (op.Reshape(x, graph.ints(0, 0, -1, size)) for x in (q, k))
    normalised = (layer_norm(graph, x, weights, f"{prefix}{part}_norm") for x, part in zip(by_head, "qk", strict=True))
    q, k = (op.Reshape(x, graph.ints(0, 0, -1)) for x in normalised)
    return q, k, value


def feed_forward(graph: DecoderGraph, x: ir.Value, weights: Tensors, prefix: str) -> ir.Value:
    """Build down(act(gate(x)) · up(x)), or down(act(up(x)))."""
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
    """Build the base's activation."""
    op, kind = graph.op, graph.config.activation
    activated: ir.Value
    if kind == "silu":
        activated = op.Mul(x, op.Sigmoid(x))
    elif kind == "relu":
        activated = op.Relu(x)
    elif kind == "relu2":
        positive = op.Relu(x)
        activated = op.Mul(positive, positive)
    else:
        activated = op.Gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
    return activated


class Stack(NamedTuple):
    """The outputs of a stack of layers: states after the final norm [B, S, H], present keys and values.

    `streams[n]` [B, S, H] is the residual stream after n layers.
    """

    hidden: ir.Value
    present: list[ir.Value]
    streams: list[ir.Value]


def layers(
    graph: DecoderGraph,
    x: ir.Value,
    weights: Tensors,
    prefix: str,
    final_norm: str | None,
    first_input: ir.Value | None = None,
) -> Stack:
    """Build all decoder layers and the final norm, where there is one.

    The first layer's attention reads `first_input`, whatever its width, in place of the normalised x, where given.
    `delta` is what a sublayer adds, kept apart from the residual stream x, so that the sum goes with the next norm.
    """
    past = [graph.inputs[name] for name in graph.spec.past_names()]
    delta: ir.Value | None = None
    present: list[ir.Value] = []
    streams: list[ir.Value] = []
    for index, layer in enumerate(graph.config.layers):
        name = f"{prefix}{index}."
        if index == 0 and first_input is not None:
            normalised = first_input
        else:
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
    if final_norm is None:
        hidden = x = graph.op.Add(x, delta)
    else:
        hidden, x = add_norm(graph, x, delta, weights, final_norm)
    return Stack(hidden, present, [*streams, x])


def _before(
    graph: DecoderGraph, x: ir.Value, delta: ir.Value | None, weights: Tensors, name: str
) -> tuple[ir.Value, ir.Value]:
    """Return what a sublayer reads, and the residual stream that it adds to."""
    if graph.config.placement != "post":
        return add_norm(graph, x, delta, weights, name)
    total = x if delta is None else graph.op.Add(x, delta)
    return total, total


def _behind(graph: DecoderGraph, delta: ir.Value, weights: Tensors, name: str) -> ir.Value:
    """Return what a sublayer adds, normalised where the base does so."""
    return layer_norm(graph, delta, weights, name) if graph.config.placement in ("post", "both") else delta


def kept_rows(graph: DecoderGraph, hidden: ir.Value) -> ir.Value:
    """Build the last `logits_to_keep` rows of hidden states [B, S, H] (0: all)."""
    # Minus 0 is 0, where a slice begins that keeps all rows.
    start = graph.op.Reshape(graph.op.Neg(graph.keep), graph.ints(1))
    kept: ir.Value = graph.op.Slice(hidden, start, graph.ints(INT64_MAX), graph.ints(1))
    return kept


def logits(graph: DecoderGraph, kept: ir.Value, head: LazyWeight) -> ir.Value:
    """Build logits of rows that are `kept`; the head [V, H] is stored as the embedding is."""
    kept = graph.scaled(kept, graph.config.logit_scale)
    return graph.capped(graph.rows_product(kept, graph.weight(head)), graph.config.logit_softcap)

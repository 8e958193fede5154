"""`recycler.onnx`: the recyclable module."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import GraphSpec
from recycle_onnx.export import blocks
from recycle_onnx.export.flavours import ORT, Flavour
from recycle_onnx.export.full_model import EMBEDDING, LM_HEAD, POSITIONS
from recycle_onnx.export.graph import DecoderGraph
from recycle_onnx.export.lazy import LazyWeight, of_some_rows

DRAFT_HEAD = "draft_head.weight"


def recycler_spec(config: RecyclerConfig, base: BaseConfig, draft: list[int] | None = None) -> GraphSpec:
    """Return the module's interface; with a draft vocabulary it has a logit for each of its tokens only."""
    vocab_size = base.vocab_size if draft is None else len(draft)
    return GraphSpec(
        "recycler", config.num_layers, base.num_kv_heads, base.head_dim, base.hidden_size, vocab_size, taps=config.tap
    )


def build_recycler(
    config: RecyclerConfig,
    base: BaseConfig,
    weights: Tensors,
    shared: Mapping[str, LazyWeight],
    draft: list[int] | None = None,
    flavour: Flavour = ORT,
) -> ir.Model:
    """Build a graph from tokens at p+1 and hidden states at p to logits of p+2, and the module's own state.

    That state has the form of the input.

    Embedding and LM head are the full model's own, `shared`; with a `draft` vocabulary the head is a copy of its rows.
    """
    graph = flavour.graph(recycler_spec(config, base, draft), config.layers_of(base))
    embedding = blocks.embed(graph, shared[EMBEDDING], shared.get(POSITIONS))
    states = zip(config.hidden_norms(), _split(graph, graph.inputs[graph.spec.state_input]), strict=True)
    parts = {
        "embedding": [blocks.norm(graph, embedding, weights, "embedding_norm.weight")],
        "hidden_state": [blocks.norm(graph, state, weights, name) for name, state in states],
    }
    joined = graph.op.Concat(*(part for name in config.concat for part in parts[name]), axis=-1)
    x = graph.linear(joined, weights, "projection.weight")
    stack = blocks.layers(graph, x, weights, "layers.", "norm")
    own = stack.hidden if config.recycle == "post_norm" else stack.streams[-1]
    head = shared.get(LM_HEAD, shared[EMBEDDING])
    if draft is not None:
        head = of_some_rows(DRAFT_HEAD, head, draft)
    return graph.finish([blocks.logits(graph, stack.hidden, head), _repeat(graph, own), *stack.present])


def _split(graph: DecoderGraph, states: ir.Value) -> list[ir.Value]:
    """Split [B, S, n·H] into the taps [B, S, H]."""
    count = len(graph.spec.taps)
    if count == 1:
        return [states]
    return list(graph.op.Split(states, axis=-1, num_outputs=count, _outputs=count))


def _repeat(graph: DecoderGraph, own: ir.Value) -> ir.Value:
    """Put the module's own state in the place of every tap, for a chain."""
    count = len(graph.spec.taps)
    return own if count == 1 else graph.op.Concat(*[own] * count, axis=-1)

"""`recycler.onnx`: the recyclable module."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig
from recycle_onnx.checkpoint.recycler import ATTENTION, FUSION, OWN_EMBEDDING, OWN_HEAD, block_name, place_head
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import GraphSpec
from recycle_onnx.export import blocks
from recycle_onnx.export.flavours import ORT, Flavour
from recycle_onnx.export.full_model import EMBEDDING, LM_HEAD, POSITIONS, Fuse
from recycle_onnx.export.graph import DecoderGraph, windows_of
from recycle_onnx.export.lazy import LazyWeight, of_some_rows, of_table

DRAFT_HEAD = "draft_head.weight"
"""The rows of the LM head that a draft vocabulary has; a whole vocabulary shares the full model's head."""
OWN = "recycler."
"""Begins the names of tables that the module does not share: both graphs' weights lie in the same files by name."""


def recycler_spec(config: RecyclerConfig, base: BaseConfig, draft: list[int] | None = None) -> GraphSpec:
    """Return the module's interface; with a draft vocabulary it has a logit for each of its tokens only."""
    vocab_size = base.vocab_size if draft is None else len(draft)
    layers = config.layers_of(base)
    return GraphSpec(
        "recycler", config.num_layers, layers.num_kv_heads, layers.head_dim, base.hidden_size, vocab_size,
        taps=config.states, places=config.places, reach=_reach(layers), windows=windows_of(layers),
    )  # fmt: skip


def _reach(layers: BaseConfig) -> int | None:
    """Return how many rows a row depends on where all layers have a window: each looks back from what the next sees."""
    windows = [layer.window for layer in layers.layers]
    return None if None in windows else 1 + sum(window - 1 for window in windows if window)


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

    Embedding and LM head are the full model's own, `shared`, or the module's; with a `draft` vocabulary a shared head
    is a copy of its rows.
    """
    graph = flavour.graph(recycler_spec(config, base, draft), config.layers_of(base))
    if config.join is None:
        return _places(graph, config, weights, shared, draft)
    own_table = config.embedding == "own"
    table = of_table(OWN_EMBEDDING, weights, f"{OWN}{OWN_EMBEDDING}") if own_table else shared[EMBEDDING]
    embedding = blocks.embed(graph, table, shared.get(POSITIONS))
    states = _split(graph, graph.inputs[graph.spec.state_input])
    if "embedding" in config.norms_before_projection:
        embedding = blocks.norm(graph, embedding, weights, "embedding_norm.weight")
    normed = [
        blocks.norm(graph, state, weights, name) for state, name in zip(states, config.hidden_norms(), strict=False)
    ] or states
    parts = {"embedding": [embedding], "hidden_state": normed}
    joined = graph.op.Concat(*(part for name in config.concat for part in parts[name]), axis=-1)
    if config.join == ATTENTION:
        x, first = (normed if config.residual == "normed_hidden_state" else states)[0], joined
    else:
        x = graph.linear(joined, weights, "projection.weight", bias=config.projection_bias)
        first = None if config.first_norm else x
    stack = blocks.layers(graph, x, weights, "layers.", "norm" if config.final_norm else None, first)
    own = stack.hidden if config.recycle == "post_norm" else stack.streams[-1]
    head = _head(config, weights, shared, draft)
    logits = blocks.logits(graph, blocks.kept_rows(graph, stack.hidden), head)
    return graph.finish([logits, _repeat(graph, own), *stack.present])


def _places(
    graph: DecoderGraph,
    config: RecyclerConfig,
    weights: Tensors,
    shared: Mapping[str, LazyWeight],
    draft: list[int] | None,
) -> ir.Model:
    """Build logits for every place of a chain from one hidden state, which is left as it is."""
    hidden = graph.inputs[graph.spec.state_input]
    kept, logits = blocks.kept_rows(graph, hidden), []
    for place in range(config.places):
        x = kept
        for block in range(config.blocks):
            name = f"{block_name(place, block)}.weight"
            projected = graph.linear(x, weights, name, bias=config.projection_bias)
            x = graph.op.Add(x, graph.op.Mul(projected, graph.op.Sigmoid(projected)))
        head = _head(config, weights, shared, draft, place_head(place))
        logits.append(blocks.logits(graph, x, head))
    side_by_side = logits[0] if len(logits) == 1 else graph.op.Concat(*logits, axis=-1)
    return graph.finish([side_by_side, graph.op.Identity(hidden)])


def fusion_of(config: RecyclerConfig, base: BaseConfig, weights: Tensors) -> Fuse | None:
    """Return what builds, in the full model's graph, the one hidden state that a module reads; None where it has taps.

    (There, because a chain goes on behind it: the module's graph need not tell true states from its own.)
    """
    if config.fusion is None:
        return None
    eps, norms = config.layers_of(base).norm.eps, config.fusion_norms()

    def fuse(graph: DecoderGraph, taps: list[ir.Value]) -> ir.Value:
        if len(norms) == len(taps):
            taps = [blocks.norm(graph, tap, weights, name, eps) for tap, name in zip(taps, norms, strict=True)]
        joined = graph.op.Concat(*taps, axis=-1)
        if len(norms) == 1:
            joined = blocks.norm(graph, joined, weights, norms[0], eps)
        return graph.linear(joined, weights, FUSION)

    return fuse


def _head(
    config: RecyclerConfig,
    weights: Tensors,
    shared: Mapping[str, LazyWeight],
    draft: list[int] | None,
    own: str = OWN_HEAD,
) -> LazyWeight:
    """Return the LM head's rows: the module's `own`, or the full model's, of a draft vocabulary or all."""
    if config.lm_head == "own":
        alone = own == OWN_HEAD and draft is not None
        return of_table(own, weights, DRAFT_HEAD if alone else f"{OWN}{own}")
    head = shared.get(LM_HEAD, shared[EMBEDDING])
    return head if draft is None else of_some_rows(DRAFT_HEAD, head, draft)


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

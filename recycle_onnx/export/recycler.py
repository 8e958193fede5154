"""`recycler.onnx`: the recyclable module."""

from __future__ import annotations

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig
from recycle_onnx.contract import HIDDEN_STATES, GraphSpec
from recycle_onnx.export import blocks
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.full_model import EMBEDDING, LM_HEAD, POSITIONS
from recycle_onnx.export.graph import DecoderGraph, Tensors

DRAFT_HEAD = "draft_head.weight"


def recycler_spec(config: RecyclerConfig, base: BaseConfig, draft: list[int] | None = None) -> GraphSpec:
    """The module's interface; with a draft vocabulary it has a logit for each of its tokens only."""
    vocab_size = base.vocab_size if draft is None else len(draft)
    return GraphSpec("recycler", config.num_layers, base.num_kv_heads, base.head_dim, base.hidden_size, vocab_size)


def build_recycler(
    config: RecyclerConfig,
    base: BaseConfig,
    weights: Tensors,
    writer: ExternalDataWriter,
    shared: dict[str, ir.ExternalTensor],
    draft: list[int] | None = None,
) -> ir.Model:
    """Tokens at p+1 and hidden states at p to logits of p+2.

    Embedding and LM head are the full model's own; with a `draft` vocabulary the head is a copy of its rows.
    """
    graph = DecoderGraph(recycler_spec(config, base, draft), base.last(config.num_layers), writer)
    embedding = blocks.embed(graph, shared[EMBEDDING], shared.get(POSITIONS))
    parts = (
        blocks.norm(graph, embedding, weights, "embedding_norm.weight"),
        blocks.norm(graph, graph.inputs[HIDDEN_STATES], weights, "hidden_norm.weight"),
    )
    x = graph.linear(graph.op.Concat(*parts, axis=-1), weights, "projection.weight")
    hidden, present = blocks.layers(graph, x, weights, "layers.", "norm.weight")
    head = shared.get(LM_HEAD, shared[EMBEDDING])
    if draft is not None:
        head = writer.write(DRAFT_HEAD, head.numpy()[draft])
    return graph.finish([blocks.logits(graph, hidden, head), hidden, *present])

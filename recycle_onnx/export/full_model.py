"""`model.onnx`: the base."""

from __future__ import annotations

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.checkpoint.weights import Weights
from recycle_onnx.contract import INPUT_IDS, GraphSpec
from recycle_onnx.export import blocks
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.graph import DecoderGraph

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def full_spec(config: BaseConfig) -> GraphSpec:
    """The full model's interface."""
    return GraphSpec(
        "full", config.num_layers, config.num_kv_heads, config.head_dim, config.hidden_size, config.vocab_size
    )


def build_full_model(config: BaseConfig, weights: Weights, writer: ExternalDataWriter) -> ir.Model:
    """Token ids to logits, hidden states and present keys and values."""
    graph = DecoderGraph(full_spec(config), config, writer)
    embedding = writer.write(EMBEDDING, weights.float32(EMBEDDING))
    head = embedding if config.tied_embeddings else writer.write(LM_HEAD, weights.float32(LM_HEAD))
    x = graph.op.Gather(graph.shared(embedding), graph.inputs[INPUT_IDS])
    hidden, present = blocks.layers(graph, x, weights, "model.layers.", "model.norm.weight")
    return graph.finish([blocks.logits(graph, hidden, head), hidden, *present])

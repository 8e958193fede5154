"""`model.onnx`: the base."""

from __future__ import annotations

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.contract import GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export import blocks
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.graph import DecoderGraph, Tensors

EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
LM_HEAD = "lm_head.weight"
HEAD_SIZES = 8


def full_spec(config: BaseConfig) -> GraphSpec:
    """The full model's interface."""
    return GraphSpec(
        "full", config.num_layers, config.num_kv_heads, config.head_dim, config.hidden_size, config.vocab_size
    )


def build_full_model(config: BaseConfig, weights: Tensors, writer: ExternalDataWriter) -> ir.Model:
    """Token ids to logits, hidden states and present keys and values.

    Raises:
        InputError: a head size that the kernels lack.
    """
    if config.head_dim % HEAD_SIZES:
        raise InputError(f"head_dim is {config.head_dim}; GroupQueryAttention takes a multiple of {HEAD_SIZES}")
    graph = DecoderGraph(full_spec(config), config, writer)
    embedding = writer.write(EMBEDDING, weights.float32(EMBEDDING))
    head = embedding if config.tied_embeddings else writer.write(LM_HEAD, weights.float32(LM_HEAD))
    learned = config.position_offset is not None
    positions = writer.write(POSITIONS, weights.float32(POSITIONS)) if learned else None
    x = blocks.embed(graph, embedding, positions)
    hidden, present = blocks.layers(graph, x, weights, "model.layers.", "model.norm.weight")
    return graph.finish([blocks.logits(graph, hidden, head), hidden, *present])

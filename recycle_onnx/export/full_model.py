"""`model.onnx`: the base."""

from __future__ import annotations

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.checkpoint.taps import FINAL_PRE, layer_of
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import FINAL_POST, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export import blocks
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.graph import DecoderGraph

EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
LM_HEAD = "lm_head.weight"
HEAD_SIZES = 8


def full_spec(config: BaseConfig, taps: tuple[str, ...] = (FINAL_POST,)) -> GraphSpec:
    """The full model's interface, with the hidden states that its module reads."""
    return GraphSpec(
        "full", config.num_layers, config.num_kv_heads, config.head_dim, config.hidden_size, config.vocab_size,
        taps=taps,
    )  # fmt: skip


def build_full_model(
    config: BaseConfig, weights: Tensors, writer: ExternalDataWriter, taps: tuple[str, ...] = (FINAL_POST,)
) -> ir.Model:
    """Token ids to logits, hidden states and present keys and values.

    Raises:
        InputError: a head size that the kernels lack.
    """
    if config.head_dim % HEAD_SIZES:
        raise InputError(f"head_dim is {config.head_dim}; GroupQueryAttention takes a multiple of {HEAD_SIZES}")
    graph = DecoderGraph(full_spec(config, taps), config, writer)
    embedding = writer.write(EMBEDDING, weights.float32(EMBEDDING))
    head = embedding if config.tied_embeddings else writer.write(LM_HEAD, weights.float32(LM_HEAD))
    learned = config.position_offset is not None
    positions = writer.write(POSITIONS, weights.float32(POSITIONS)) if learned else None
    x = blocks.embed(graph, embedding, positions)
    stack = blocks.layers(graph, x, weights, "model.layers.", "model.norm")
    tapped = [_tapped(stack, tap) for tap in taps if tap != FINAL_POST]
    return graph.finish([blocks.logits(graph, stack.hidden, head), stack.hidden, *tapped, *stack.present])


def _tapped(stack: blocks.Stack, tap: str) -> ir.Value:
    return stack.streams[-1 if tap == FINAL_PRE else layer_of(tap)]

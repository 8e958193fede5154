"""`model.onnx`: the base."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.checkpoint.taps import FINAL_PRE, FUSED, layer_of
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import FINAL_POST, GraphSpec
from recycle_onnx.export import blocks
from recycle_onnx.export.flavours import ORT, Flavour
from recycle_onnx.export.graph import DecoderGraph, windows_of
from recycle_onnx.export.lazy import of_table

EMBEDDING = "model.embed_tokens.weight"
"""Names of weights in the graph: the module's graph refers to the same tensors by them."""
POSITIONS = "model.embed_positions.weight"
LM_HEAD = "lm_head.weight"

Fuse = Callable[[DecoderGraph, list[ir.Value]], ir.Value]
"""Builds one hidden state [B, S, H] of several taps."""


def full_spec(config: BaseConfig, taps: tuple[str, ...] = (FINAL_POST,)) -> GraphSpec:
    """Return the full model's interface, with the hidden states that its module reads."""
    return GraphSpec(
        "full", config.num_layers, config.num_kv_heads, config.head_dim, config.hidden_size, config.vocab_size,
        taps=taps, windows=windows_of(config),
    )  # fmt: skip


def build_full_model(
    config: BaseConfig,
    weights: Tensors,
    taps: tuple[str, ...] = (FINAL_POST,),
    flavour: Flavour = ORT,
    fuse: Fuse | None = None,
) -> ir.Model:
    """Build a graph from token ids to logits, hidden states and present keys and values; matrices are not read yet.

    The hidden states are those at the `taps`, or the one that `fuse` makes of them.

    Raises:
        InputError: a head size that the flavour's kernels lack.
    """
    graph = flavour.graph(full_spec(config, (FUSED,) if fuse else taps), config)
    embedding = of_table(EMBEDDING, weights)
    head = embedding if config.tied_embeddings else of_table(LM_HEAD, weights)
    positions = None if config.position_offset is None else of_table(POSITIONS, weights)
    x = blocks.embed(graph, embedding, positions)
    stack = blocks.layers(graph, x, weights, "model.layers.", "model.norm")
    logits = blocks.logits(graph, blocks.kept_rows(graph, stack.hidden), head)
    tapped = [_tapped(stack, tap) for tap in taps if fuse or tap != FINAL_POST]
    states = [fuse(graph, tapped)] if fuse else tapped
    return graph.finish([logits, stack.hidden, *states, *stack.present])


def _tapped(stack: blocks.Stack, tap: str) -> ir.Value:
    if tap == FINAL_POST:
        return stack.hidden
    return stack.streams[-1 if tap == FINAL_PRE else layer_of(tap)]

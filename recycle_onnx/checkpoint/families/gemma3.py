"""Gemma 3 (text): Gemma 2 with norms on queries and keys, and another RoPE base within windows."""

from __future__ import annotations

from dataclasses import replace

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, head_size
from recycle_onnx.checkpoint.families.gemma2 import NORMS, common
from recycle_onnx.checkpoint.families.rope import read_rope

DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
}
"""Which the text part of a model that sees images leaves out."""


def describe(config: Config) -> BaseConfig:
    """Describe a Gemma 3.

    Newer configs have `rope_parameters` by type of layer, older ones scale the layers without a window only.
    """
    config.fill(DEFAULTS)
    config.must_be("attn_logit_softcapping")
    by_type = config.fields("rope_parameters")
    base, local_base = config.value("rope_theta"), config.value("rope_local_base_freq")
    scaled = {"rope_theta": base, **config.fields("rope_scaling")}
    size = head_size(config)
    rope, context = read_rope(config, size, values=by_type.get("full_attention") or scaled, base=1e6)
    local, _ = read_rope(config, size, values=by_type.get("sliding_attention") or {"rope_theta": local_base})
    every = config.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    base_config = common(config, every, rope=(rope, context), qk_norm="head")
    layers = [replace(layer, rope=local) if layer.window else layer for layer in base_config.layers]
    return replace(base_config, layers=tuple(layers))


FAMILY = Family(
    ("gemma3_text", "gemma3"),
    describe,
    NORMS,
    trunk=("model.", "model.language_model.", "language_model.model."),
    genai_type="gemma3_text",
)

"""Gemma 2: norms around each sublayer, windows by turns, soft caps, scaled embeddings."""

from __future__ import annotations

from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig, Norm
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import (
    BEFORE_FEED_FORWARD,
    BEHIND_ATTENTION,
    BEHIND_FEED_FORWARD,
    Family,
    decoder,
    sliding_layers,
)  # fmt: skip

NORMS = {
    "layers.{}.post_attention_layernorm": BEHIND_ATTENTION,
    "layers.{}.pre_feedforward_layernorm": BEFORE_FEED_FORWARD,
    "layers.{}.post_feedforward_layernorm": BEHIND_FEED_FORWARD,
}
"""Its files call `post_attention_layernorm` what stands behind the attention; in a Llama that is before the MLP."""


def common(config: Config, every: int, **description: Any) -> BaseConfig:
    """Describe what Gemma 2 and 3 share: a window in all layers but every so many."""
    config.must_be("use_bidirectional_attention", False)
    count, bias = config.integer("num_hidden_layers"), config.flag("attention_bias")
    return decoder(
        config,
        sliding=sliding_layers(config) or [(index + 1) % every != 0 for index in range(count)],
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        tied=True,
        activation="gelu_pytorch_tanh",
        norm=Norm(config.number("rms_norm_eps"), plus_one=True),
        placement="both",
        qkv_bias=bias,
        output_bias=bias,
        embedding_scale=config.integer("hidden_size") ** 0.5,
        logit_softcap=config.optional("final_logit_softcapping"),
        **description,
    )


def describe(config: Config) -> BaseConfig:
    """Describe a Gemma 2, of which every second layer sees the whole text."""
    return common(config, 2, attention_softcap=config.optional("attn_logit_softcapping"))


FAMILY = Family(("gemma2",), describe, NORMS, genai_type="gemma2")

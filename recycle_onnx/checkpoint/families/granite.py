"""Granite 3 (dense): Llama with four multipliers."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe a Granite: logits are divided by `logits_scaling`, the other multipliers multiply."""
    bias = config.flag("attention_bias")
    return decoder(
        config,
        scale=config.number("attention_multiplier", default=1.0),
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=config.flag("mlp_bias"),
        embedding_scale=config.number("embedding_multiplier", default=1.0),
        residual_scale=config.number("residual_multiplier", default=1.0),
        logit_scale=1 / config.number("logits_scaling", default=1.0),
    )


FAMILY = Family(("granite",), describe, genai_type="granite")

"""Llama 2 and 3, and what follows it to the letter (SmolLM, SmolLM2)."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe a Llama: RMSNorm before each sublayer, grouped queries, rotary positions, gated SiLU."""
    bias = config.flag("attention_bias")
    return decoder(config, qkv_bias=bias, output_bias=bias, feed_forward_bias=config.flag("mlp_bias"))


FAMILY = Family(("llama",), describe, genai_type="llama")

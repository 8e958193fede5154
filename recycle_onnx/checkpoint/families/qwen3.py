"""Qwen 3: Llama with a norm on every head of queries and keys."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder
from recycle_onnx.checkpoint.families.qwen2 import upper_layers


def describe(config: Config) -> BaseConfig:
    """Describe a Qwen 3, with windows as in Qwen 2."""
    bias = config.flag("attention_bias")
    return decoder(config, sliding=upper_layers(config), qkv_bias=bias, output_bias=bias, qk_norm="head")


FAMILY = Family(("qwen3",), describe, genai_type="qwen3")

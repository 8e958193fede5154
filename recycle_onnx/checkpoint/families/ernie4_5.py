"""ERNIE 4.5 (dense): Llama with biases, and rotary positions on neighbouring values."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, head_size
from recycle_onnx.checkpoint.families.rope import read_rope


def describe(config: Config) -> BaseConfig:
    """Describe an ERNIE 4.5, which has one flag for all biases."""
    bias = config.flag("use_bias")
    return decoder(
        config,
        rope=read_rope(config, head_size(config), base=500000.0, interleaved=True),
        tied=True,
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
    )


FAMILY = Family(("ernie4_5",), describe, genai_type="ernie4_5")

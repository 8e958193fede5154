"""Arcee (AFM): Llama with a squared ReLU in the place of a gate."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe an Arcee model."""
    bias = config.flag("attention_bias")
    return decoder(
        config,
        activation="relu2",
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=config.flag("mlp_bias"),
        gated=False,
    )


FAMILY = Family(("arcee",), describe)

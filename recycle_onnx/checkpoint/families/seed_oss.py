"""Seed-OSS: Llama with biases on queries, keys and values."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe a Seed-OSS, which has a flag for each kind of bias."""
    return decoder(
        config,
        qkv_bias=config.flag("attention_bias", True),
        output_bias=config.flag("attention_out_bias"),
        feed_forward_bias=config.flag("mlp_bias"),
    )


FAMILY = Family(("seed_oss",), describe)

"""Helium: Llama that rotates neighbouring values of a head."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, head_size
from recycle_onnx.checkpoint.families.rope import read_rope


def describe(config: Config) -> BaseConfig:
    """Describe a Helium: its output projection never has a bias."""
    return decoder(
        config,
        rope=read_rope(config, head_size(config), interleaved=True),
        qkv_bias=config.flag("attention_bias"),
        feed_forward_bias=config.flag("mlp_bias"),
    )


FAMILY = Family(("helium",), describe)

"""Hunyuan (dense): Llama with norms on queries and keys, after these are rotated."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import KEY, QUERY, Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe a Hunyuan; its scaling is called dynamic, and is fixed where it names an `alpha`."""
    config.must_be("use_qk_norm", True)
    config.must_be("use_cla", False)
    bias = config.flag("attention_bias")
    return decoder(config, qkv_bias=bias, output_bias=bias, qk_norm="rotated_head")


FAMILY = Family(
    ("hunyuan_v1_dense",),
    describe,
    {
        "layers.{}.self_attn.query_layernorm": QUERY.replace("_proj", "_norm"),
        "layers.{}.self_attn.key_layernorm": KEY.replace("_proj", "_norm"),
    },
)

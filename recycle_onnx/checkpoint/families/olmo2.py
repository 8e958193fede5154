"""OLMo 2: Llama with norms behind the sublayers, and on queries and keys over their whole width."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import BEHIND_ATTENTION, BEHIND_FEED_FORWARD, Family, decoder

NORMS = {
    "layers.{}.post_attention_layernorm": BEHIND_ATTENTION,
    "layers.{}.post_feedforward_layernorm": BEHIND_FEED_FORWARD,
}
"""Names of the norms behind the sublayers."""


def describe(config: Config) -> BaseConfig:
    """Describe an OLMo 2; its norms, `post`, stand before the residual sum."""
    bias = config.flag("attention_bias")
    return decoder(config, qkv_bias=bias, output_bias=bias, placement="post", qk_norm="width")


FAMILY = Family(("olmo2",), describe, NORMS, genai_type="olmo")

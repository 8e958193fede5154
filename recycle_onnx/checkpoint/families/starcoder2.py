"""StarCoder 2: LayerNorm, biases, and a feed-forward part without a gate."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig, Norm
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import DOWN, MLP, UP, Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe a StarCoder 2; its window, if any, is in all layers."""
    bias = config.flag("use_bias", True)
    return decoder(
        config,
        sliding=config.value("sliding_window") is not None,
        tied=True,
        activation="gelu_pytorch_tanh",
        norm=Norm(config.number("norm_epsilon", default=1e-5), "layer", bias=True),
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
        gated=False,
    )


FAMILY = Family(("starcoder2",), describe, {f"{MLP}.c_fc": UP, f"{MLP}.c_proj": DOWN})

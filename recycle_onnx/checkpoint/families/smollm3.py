"""SmolLM3: Llama without positions in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, sliding_layers


def describe(config: Config) -> BaseConfig:
    """Describe a SmolLM3.

    Windows, where used, are in the layers without positions, unless `layer_types` says otherwise.
    """
    count, interval = config.integer("num_hidden_layers"), config.integer("no_rope_layer_interval", default=4)
    rotary = config.listed("no_rope_layers", count, [0, 1]) or [int((i + 1) % interval != 0) for i in range(count)]
    used = config.flag("use_sliding_window") and config.value("sliding_window") is not None
    sliding = (sliding_layers(config) or [not has for has in rotary]) if used else [False] * count
    bias = config.flag("attention_bias")
    base = decoder(
        config, sliding=sliding, tied=True, qkv_bias=bias, output_bias=bias, feed_forward_bias=config.flag("mlp_bias")
    )
    layers = [layer if has else replace(layer, rope=None) for layer, has in zip(base.layers, rotary, strict=True)]
    return replace(base, layers=tuple(layers))


FAMILY = Family(("smollm3",), describe, genai_type="smollm3")

"""EXAONE 4: Llama with norms behind the sublayers and on heads, and perhaps without positions in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, sliding_layers
from recycle_onnx.checkpoint.families.olmo2 import NORMS


def describe(config: Config) -> BaseConfig:
    """Describe an EXAONE 4; where some layers have a window, the others have no positions."""
    if config.value("sliding_window") is None:
        config.value("layer_types")  # says nothing then
        return decoder(config, placement="post", qk_norm="head")
    base = decoder(config, sliding=sliding_layers(config) or _pattern(config), placement="post", qk_norm="head")
    layers = [layer if layer.window else replace(layer, rope=None) for layer in base.layers]
    return replace(base, layers=tuple(layers))


def _pattern(config: Config) -> list[bool]:
    every = config.integer("sliding_window_pattern", default=4)
    return [(index + 1) % max(1, every) != 0 for index in range(config.integer("num_hidden_layers"))]


FAMILY = Family(("exaone4",), describe, NORMS)

"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and perhaps a window in the upper layers."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, sliding_layers


def upper_layers(config: Config) -> list[bool]:
    """Return which layers have a window: those that `layer_types` names, or from `max_window_layers` on."""
    count, first = config.integer("num_hidden_layers"), config.integer("max_window_layers", default=28)
    by_type, used = sliding_layers(config), config.flag("use_sliding_window")
    if not used or config.value("sliding_window") is None:
        if by_type and any(by_type):
            raise config.wrong("use_sliding_window", used, "true, since layer_types has sliding layers")
        return [False] * count
    return by_type or [index >= first for index in range(count)]


def describe(config: Config) -> BaseConfig:
    """Describe a Qwen 2, whose biases are not in the config."""
    return decoder(config, sliding=upper_layers(config), qkv_bias=True)


FAMILY = Family(("qwen2",), describe, genai_type="qwen2")

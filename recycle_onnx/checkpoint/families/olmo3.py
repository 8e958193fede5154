"""OLMo 3: OLMo 2 with a window in three of four layers, whose positions are never scaled."""

from __future__ import annotations

from dataclasses import replace

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, head_size, sliding_layers
from recycle_onnx.checkpoint.families.olmo2 import NORMS
from recycle_onnx.checkpoint.families.rope import read_rope

BASE = 500000.0
"""Of rotary positions, where the config names none."""


def describe(config: Config) -> BaseConfig:
    """Describe an OLMo 3.

    Newer configs have `rope_parameters` by type of layer, older ones scale the layers without a window only.
    """
    count, size, bias = config.integer("num_hidden_layers"), head_size(config), config.flag("attention_bias")
    by_type, theta = config.fields("rope_parameters"), config.value("rope_theta")
    whole = by_type.get("full_attention") or {"rope_theta": theta, **config.fields("rope_scaling"), **_of_all(by_type)}
    local = by_type.get("sliding_attention") or {"rope_theta": whole.get("rope_theta")}
    base = decoder(
        config,
        rope=read_rope(config, size, values=whole, base=BASE),
        sliding=sliding_layers(config) or [(index + 1) % 4 != 0 for index in range(count)],
        qkv_bias=bias,
        output_bias=bias,
        placement="post",
        qk_norm="width",
    )
    rope, _ = read_rope(config, size, values=local, base=BASE)
    layers = [replace(layer, rope=rope) if layer.window else layer for layer in base.layers]
    return replace(base, layers=tuple(layers))


def _of_all(parameters: dict[str, object]) -> dict[str, object]:
    """Return the parameters that stand for all types of layers alike."""
    return {name: value for name, value in parameters.items() if not isinstance(value, dict)}


FAMILY = Family(("olmo3",), describe, NORMS)

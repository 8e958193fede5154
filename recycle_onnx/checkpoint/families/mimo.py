"""MiMo 7B: the trunk is a Qwen 2; the layers that predict further tokens are a head (`checkpoint/heads/mimo.py`)."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder
from recycle_onnx.checkpoint.families.qwen2 import upper_layers


def describe(config: Config) -> BaseConfig:
    """Describe a MiMo, whose config may say that there are biases, which a Qwen 2 has without saying."""
    return decoder(config, sliding=upper_layers(config), qkv_bias=config.flag("attention_bias", True))


FAMILY = Family(("mimo",), describe, genai_type="qwen2")

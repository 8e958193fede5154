"""Mistral: Llama with a sliding window in every layer, or in none."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder


def describe(config: Config) -> BaseConfig:
    """Describe a Mistral, with a window where the config has one."""
    return decoder(config, sliding=config.value("sliding_window") is not None)


FAMILY = Family(("mistral",), describe, genai_type="mistral")

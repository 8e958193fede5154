"""GLM 4 and GLM Edge: Llama with packed gate and up, half of a head rotated, in neighbouring values."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import (
    BEHIND_ATTENTION,
    BEHIND_FEED_FORWARD,
    GATE,
    MLP,
    UP,
    Family,
    StoredMatrix,
    decoder,
    head_size,
)  # fmt: skip
from recycle_onnx.checkpoint.families.rope import read_rope


def describe(config: Config) -> BaseConfig:
    """Describe a GLM; those of type `glm4` have norms behind the sublayers too."""
    return decoder(
        config,
        rope=read_rope(config, head_size(config), part=0.5, interleaved=True),
        qkv_bias=config.flag("attention_bias", True),
        placement="both" if config.value("model_type") == "glm4" else "pre",
    )


FAMILY = Family(
    ("glm", "glm4"),
    describe,
    {
        f"{MLP}.gate_up_proj": StoredMatrix((GATE, UP)),
        "layers.{}.post_self_attn_layernorm": BEHIND_ATTENTION,
        "layers.{}.post_mlp_layernorm": BEHIND_FEED_FORWARD,
    },
)

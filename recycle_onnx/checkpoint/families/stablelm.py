"""StableLM 2: Llama with LayerNorm, biases on queries, keys and values, and heads rotated in part."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig, Norm
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family, decoder, head_size
from recycle_onnx.checkpoint.families.rope import read_rope


def describe(config: Config) -> BaseConfig:
    """Describe a StableLM; the 12B model's norms of each head and its shared norm cannot be said."""
    config.must_be("qk_layernorm", False)
    config.must_be("use_parallel_residual", False)
    return decoder(
        config,
        rope=read_rope(config, head_size(config), part=0.25),
        norm=Norm(config.number("layer_norm_eps", default=1e-5), "layer", bias=True),
        qkv_bias=config.flag("use_qkv_bias"),
    )


FAMILY = Family(("stablelm",), describe)

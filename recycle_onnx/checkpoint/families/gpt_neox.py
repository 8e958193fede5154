"""GPT-NeoX and Pythia: LayerNorm, attention and feed-forward side by side, heads rotated in part."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig, Norm
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import (
    DOWN,
    KEY,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    Family,
    StoredMatrix,
    decoder,
    head_size,
)  # fmt: skip
from recycle_onnx.checkpoint.families.rope import read_rope


def describe(config: Config) -> BaseConfig:
    """Describe a GPT-NeoX: its halves of a layer run side by side, unless the config says one after the other."""
    bias = config.flag("attention_bias", True)
    return decoder(
        config,
        rope=read_rope(config, head_size(config), part=0.25),
        activation="gelu",
        norm=Norm(config.number("layer_norm_eps", default=1e-5), "layer", bias=True),
        placement="parallel" if config.flag("use_parallel_residual", True) else "pre",
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=True,
        gated=False,
    )


FAMILY = Family(
    ("gpt_neox",),
    describe,
    {
        "embed_in": "embed_tokens",
        "layers.{}.attention.query_key_value": StoredMatrix((QUERY, KEY, VALUE), by_head=True),
        "layers.{}.attention.dense": OUTPUT,
        "layers.{}.mlp.dense_h_to_4h": UP,
        "layers.{}.mlp.dense_4h_to_h": DOWN,
        "final_layer_norm": "norm",
    },
    trunk=("gpt_neox.", ""),
    head="embed_out",
)

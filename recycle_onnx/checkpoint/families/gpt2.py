"""GPT-2: LayerNorm, learned positions, plain feed-forward, matrices stored as [in, out]."""

from __future__ import annotations

from dataclasses import replace

from recycle_onnx.checkpoint.base import BaseConfig, Norm
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import (
    BEFORE_ATTENTION,
    BEFORE_FEED_FORWARD,
    DOWN,
    KEY,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    Family,
    StoredMatrix,
    decoder,
)  # fmt: skip


def describe(config: Config) -> BaseConfig:
    """Describe a GPT-2, whose scores may be unscaled, or divided by the number of the layer."""
    base = decoder(
        config,
        rope=(None, config.integer("max_position_embeddings", "n_positions")),
        scale=None if config.flag("scale_attn_weights", True) else 1.0,
        tied=True,
        intermediate_size=config.integer("n_inner", default=4 * config.integer("n_embd")),
        norm=Norm(config.number("layer_norm_epsilon", default=1e-5), "layer", bias=True),
        qkv_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        gated=False,
        activation="gelu_new",
        position_offset=0,
    )
    if not config.flag("scale_attn_by_inverse_layer_idx"):
        return base
    layers = [replace(layer, scale=layer.scale / number) for number, layer in enumerate(base.layers, start=1)]
    return replace(base, layers=tuple(layers))


FAMILY = Family(
    ("gpt2",),
    describe,
    {
        "wte": "embed_tokens",
        "wpe": "embed_positions",
        "h.{}.ln_1": BEFORE_ATTENTION,
        "h.{}.attn.c_attn": StoredMatrix((QUERY, KEY, VALUE), transposed=True),
        "h.{}.attn.c_proj": StoredMatrix((OUTPUT,), transposed=True),
        "h.{}.ln_2": BEFORE_FEED_FORWARD,
        "h.{}.mlp.c_fc": StoredMatrix((UP,), transposed=True),
        "h.{}.mlp.c_proj": StoredMatrix((DOWN,), transposed=True),
        "ln_f": "norm",
    },
    trunk=("transformer.", ""),
)

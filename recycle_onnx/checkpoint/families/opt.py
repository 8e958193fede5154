"""OPT: LayerNorm, learned positions that begin in row 2, plain feed-forward."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig, Norm
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import (
    BEFORE_ATTENTION,
    BEFORE_FEED_FORWARD,
    DOWN,
    OUTPUT,
    UP,
    Family,
    decoder,
)  # fmt: skip


def describe(config: Config) -> BaseConfig:
    """Describe an OPT.

    Norms behind the residual sum and narrower embeddings, which opt-350m alone has, are refused.
    """
    config.must_be("do_layer_norm_before", True)
    config.must_be("_remove_final_layer_norm", False)
    config.must_be("layer_norm_elementwise_affine", True)
    config.must_be("word_embed_proj_dim", config.integer("hidden_size"))
    bias = config.flag("enable_bias", True)
    return decoder(
        config,
        rope=(None, config.integer("max_position_embeddings")),
        tied=True,
        activation="relu",
        norm=Norm(1e-5, "layer", bias=True),
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
        gated=False,
        position_offset=2,
    )


FAMILY = Family(
    ("opt",),
    describe,
    {
        "layers.{}.self_attn_layer_norm": BEFORE_ATTENTION,
        "layers.{}.self_attn.out_proj": OUTPUT,
        "layers.{}.final_layer_norm": BEFORE_FEED_FORWARD,
        "layers.{}.fc1": UP,
        "layers.{}.fc2": DOWN,
        "final_layer_norm": "norm",
    },
    trunk=("model.decoder.", "decoder."),
)

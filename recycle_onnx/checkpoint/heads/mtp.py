"""Layers inside a checkpoint that predict the token after next (multi-token prediction), on dense trunks.

All of them normalise embedding and hidden state, project both to the hidden size and run a layer of the base's kind.
They differ in names, in the order of the two, and in what stands behind the layer. A checkpoint may have several, the
k-th for the token k further on; the first is used here, again and again.
"""

from __future__ import annotations

from collections.abc import Callable

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.heads.layer_config import layer_config
from recycle_onnx.checkpoint.recycler import EMBEDDING_FIRST, RecyclerConfig


def of_the_base(
    concat: tuple[str, ...], recycle: str, *, final_norm: bool = True
) -> Callable[[HeadFiles, BaseConfig], RecyclerConfig]:
    """Return what describes one layer of the base's kind, by its conventions."""

    def conventions(files: HeadFiles, base: BaseConfig) -> RecyclerConfig:
        return RecyclerConfig(1, base.model_type, concat=concat, recycle=recycle, final_norm=final_norm)

    return conventions


def of_speculators(files: HeadFiles, base: BaseConfig) -> RecyclerConfig:
    """Describe a layer that the library speculators trained; its config says what kind it is."""
    own, window = layer_config(files, base)
    return RecyclerConfig(1, own["model_type"], window=window, layer_config=own)


MIMO = HeadFormat(
    "mimo",
    signs=("model.mtp_layers.0.input_proj.",),
    tensors={
        "model.mtp_layers.0.token_layernorm.": "embedding_norm.",
        "model.mtp_layers.0.hidden_layernorm.": "hidden_norm.",
        "model.mtp_layers.0.input_proj.": "projection.",
        "model.mtp_layers.0.final_layernorm.": "norm.",
        "model.mtp_layers.0.": "layers.0.",
    },
    conventions=of_the_base(EMBEDDING_FIRST[::-1], "post_norm"),
    inside=True,
    layer=r"model\.mtp_layers\.\d+\.input_proj\.weight",
    source="XiaomiMiMo/MiMo-7B, modeling_mimo.py; vLLM, mimo_mtp.py",
)
ERNIE = HeadFormat(
    "ernie",
    signs=("model.mtp_linear_proj.0.",),
    tensors={
        "model.mtp_emb_norm.0.": "embedding_norm.",
        "model.mtp_hidden_norm.0.": "hidden_norm.",
        "model.mtp_linear_proj.0.": "projection.",
        "model.mtp_block.0.": "layers.0.",
    },
    conventions=of_the_base(EMBEDDING_FIRST, "pre_norm", final_norm=False),
    inside=True,
    layer=r"model\.mtp_linear_proj\.\d+\.weight",
    source="vLLM, ernie_mtp.py",
)
DEEPSEEK = HeadFormat(
    "deepseek",
    signs=("model.layers.{layers}.eh_proj.",),
    tensors={
        "model.layers.{layers}.enorm.": "embedding_norm.",
        "model.layers.{layers}.hnorm.": "hidden_norm.",
        "model.layers.{layers}.eh_proj.": "projection.",
        "model.layers.{layers}.shared_head.norm.": "norm.",
        "model.layers.{layers}.shared_head.head.": "lm_head.",
        "model.layers.{layers}.embed_tokens.": "embed_tokens.",
        "model.layers.{layers}.": "layers.0.",
    },
    conventions=of_the_base(EMBEDDING_FIRST, "pre_norm"),
    inside=True,
    layer=r"model\.layers\.\d+\.eh_proj\.weight",
    source="vLLM, deepseek_mtp.py and glm4_moe_mtp.py",
)
SPECULATORS = HeadFormat(
    "mtp, speculators",
    signs=("mtp_layers.0.input_proj.",),
    tensors={
        "mtp_layers.0.token_layernorm.": "embedding_norm.",
        "mtp_layers.0.hidden_layernorm.": "hidden_norm.",
        "mtp_layers.0.input_proj.": "projection.",
        "mtp_layers.0.final_layernorm.": "norm.",
        "mtp_layers.0.": "layers.0.",
        "embed_tokens.": "embed_tokens.",
        "lm_head.": "lm_head.",
    },
    conventions=of_speculators,
    unused=("d2t", "t2d", "verifier_norm.", "verifier_lm_head."),
    source="vllm-project/speculators, models/mtp/model_definitions.py",
)

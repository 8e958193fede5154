"""EAGLE 3 (arXiv 2503.01840): three hidden states in one, and attention that reads it beside the embedding.

The names are SafeAILab's and SpecForge's (`midlayer.`), those of the library speculators (`layers.0.`) or NeMo
AutoModel's (`model.layers.0.`). speculators' numbers of layers name a layer's input, the others' its output.
"""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.heads.layer_config import layer_config
from recycle_onnx.checkpoint.recycler import ATTENTION, FUSION, RecyclerConfig
from recycle_onnx.checkpoint.taps import FINAL_PRE, LAYER
from recycle_onnx.contract import FINAL_POST
from recycle_onnx.errors import InputError

TAPS = "eagle_aux_hidden_state_layer_ids"


def conventions(files: HeadFiles, base: BaseConfig) -> RecyclerConfig:
    """Describe an EAGLE-3 head; which norms it has follows from its tensors.

    Raises:
        InputError: a head of another width than its base, or norms in two places before the fusion.
    """
    own, window = layer_config(files, base)
    width = files.raw.get("target_hidden_size")
    if width not in (None, own.get("hidden_size")):
        raise InputError(
            f"{files.where}: target_hidden_size {width!r} is not supported; expected none, or the head's own "
            f"hidden_size, {own.get('hidden_size')}"
        )
    return RecyclerConfig(
        files.layers(),
        own["model_type"],
        tap=_taps(files, base),
        norms_before_projection=("embedding", "hidden_state"),
        recycle="post_norm" if files.flag("norm_output") else "pre_norm",
        window=window,
        fusion=_fusion(files),
        join=ATTENTION,
        residual="normed_hidden_state" if files.flag("norm_before_residual") else "hidden_state",
        layer_config=own,
    )


def _fusion(files: HeadFiles) -> str | None:
    if not files.has(FUSION):
        return None
    one = files.has("fusion_norm.weight") or files.flag("norm_before_fc")
    several = files.has("fusion_norm.0.weight") or files.flag("fc_norm")
    if one and several:
        raise InputError(f"{files.where}: norm_before_fc and fc_norm together are not supported; expected one of them")
    return "norms, linear" if several else "norm, linear" if one else "linear"


def _taps(files: HeadFiles, base: BaseConfig) -> tuple[str, ...]:
    """Return the taps: those that the config names, or the three that all implementations take without."""
    if not files.has(FUSION):
        return (FINAL_POST,)
    count = base.num_layers
    named = files.listed(TAPS) or None  # some files have an empty list
    first = 0 if files.of_speculators or named is None else 1  # the number of an output is one less
    numbers = [2, count // 2, count - 3] if named is None else [number + first for number in named]
    return tuple(FINAL_PRE if number == count else f"{LAYER}{number}" for number in numbers)


FORMAT = HeadFormat(
    "eagle3",
    signs=("layers.0.hidden_norm.",),
    tensors={
        "layers.0.input_layernorm.": "embedding_norm.",
        "layers.0.hidden_norm.": "hidden_norm.",
        "layers.": "layers.",
        "fc.": "fusion_projection.",
        "input_norm.": "fusion_norm.",
        "fc_norm.": "fusion_norm.",
        "norm.": "norm.",
        "embed_tokens.": "embed_tokens.",
        "lm_head.": "lm_head.",
    },
    conventions=conventions,
    unused=("d2t", "t2d", "verifier_norm.", "verifier_lm_head."),
    source="SafeAILab/EAGLE, sgl-project/SpecForge, vllm-project/speculators",
)

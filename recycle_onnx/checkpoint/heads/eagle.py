"""EAGLE 1 and 2, and HASS: embedding and final hidden state through a projection, then layers without a final norm.

The first layer does not normalise what the projection gives it, unless the file has that norm. SafeAILab's repository
(eagle/model/cnets1.py), vLLM's llama_eagle.py and the library speculators (models/eagle.py), which adds norms, agree.
"""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.heads.layer_config import layer_config
from recycle_onnx.checkpoint.recycler import RecyclerConfig


def conventions(files: HeadFiles, base: BaseConfig) -> RecyclerConfig:
    """Describe an EAGLE head; which norms and biases it has follows from its tensors."""
    own, window = layer_config(files, base)
    normed = {"embedding": "embedding_norm.weight", "hidden_state": "hidden_norm.weight"}
    return RecyclerConfig(
        files.layers(),
        own["model_type"],
        norms_before_projection=tuple(part for part, norm in normed.items() if files.has(norm)),
        final_norm=files.has("norm.weight"),
        recycle="post_norm" if files.has("norm.weight") else "pre_norm",
        window=window,
        first_norm=files.has("layers.0.input_layernorm.weight"),
        projection_bias=files.has("projection.bias"),
        layer_config=own,
    )


FORMAT = HeadFormat(
    "eagle",
    signs=("fc.", "layers.0.self_attn."),
    tensors={
        "fc.": "projection.",
        "embed_tokens.": "embed_tokens.",
        "lm_head.": "lm_head.",
        "layers.": "layers.",
        "embedding_layernorm.": "embedding_norm.",
        "hidden_states_layernorm.": "hidden_norm.",
    },
    conventions=conventions,
    source="SafeAILab/EAGLE, eagle/model/cnets1.py",
)
OF_SPECULATORS = HeadFormat(
    "eagle, speculators",
    signs=("fusion_fc.", "transformer.self_attn."),
    tensors={
        "fusion_fc.": "projection.",
        "transformer.": "layers.0.",
        "embed_tokens.": "embed_tokens.",
        "lm_head.": "lm_head.",
        "embedding_layernorm.": "embedding_norm.",
        "pre_lm_head_layernorm.": "norm.",
    },
    conventions=conventions,
    source="vllm-project/speculators, models/eagle.py",
)

"""A head's own decoder layers as a `config.json` of a family: what it says, mended by what its tensors show."""

from __future__ import annotations

from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import DECISIVE
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.errors import InputError

OF_LAYERS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "rms_norm_eps", "max_position_embeddings", "original_max_position_embeddings", "rope_theta", *DECISIVE,
)  # fmt: skip
"""Fields that are about layers; configs of heads copy many more from their base."""
OF_WINDOWS = ("sliding_window", "layer_types")
"""Fields that become the module's own `window`."""
ATTENTION = "layers.0.self_attn."


def layer_config(files: HeadFiles, base: BaseConfig) -> tuple[dict[str, Any], int | None]:
    """Return a `config.json` of the head's layers, and their window, None where they look back as far as they can.

    What kind of layer it is follows from the tensors: norms on queries and keys are Qwen 3's, biases on queries, keys
    and values without one on the output Qwen 2's, anything else is a Llama's. Configs of heads often say another.

    Raises:
        InputError: windows in some layers only.
    """
    raw = files.layer_values
    values = {name: raw[name] for name in OF_LAYERS if raw.get(name) is not None and name not in OF_WINDOWS}
    has_bias, output_bias = files.has(f"{ATTENTION}q_proj.bias"), files.has(f"{ATTENTION}o_proj.bias")
    values.pop("attention_bias", None)
    if files.has(f"{ATTENTION}q_norm.weight"):
        values["model_type"] = "qwen3"
    else:
        values["model_type"] = "qwen2" if has_bias and not output_bias else "llama"
    if has_bias and values["model_type"] != "qwen2":
        values["attention_bias"] = True
    values.setdefault("max_position_embeddings", base.context_length)
    return {**values, "num_hidden_layers": files.layers(), "vocab_size": base.vocab_size}, _window(files)


def _window(files: HeadFiles) -> int | None:
    """Return the window of all layers; as in vLLM a `sliding_window` counts where `layer_types` names it."""
    raw = files.layer_values
    kinds = raw.get("layer_types")
    if not isinstance(kinds, list):
        return None
    kinds = kinds[: files.layers()]
    if not any(kind == "sliding_attention" for kind in kinds):
        return None
    window = raw.get("sliding_window")
    if len(set(kinds)) > 1 or type(window) is not int:
        raise InputError(
            f"{files.where}: layer_types {kinds!r:.80} with sliding_window {window!r} is not supported; "
            "expected one kind of all layers, and a window where it slides"
        )
    return window

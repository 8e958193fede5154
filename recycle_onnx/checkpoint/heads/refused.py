"""Heads that a recyclable module cannot express: recognised, and refused by name."""

from __future__ import annotations

import re

from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.errors import InputError

TENSORS = {
    r"^mtp\.fc\.": "a head of Qwen3-Next or 3.5, whose attention has an output gate",
    r"^pre_projection\.": "an assistant of Gemma 4, which reads the base's own keys and values",
    r"\.(qweight|weight_packed|weight_scale|weight_scale_inv|absmax)$": "quantized; expected its weights in floats",
    r"\.mlp\.(experts|gate|shared_expert)\.": "a mixture of experts in the head's layer",
    r"^(model\.)?mtp_layers\.0\.self_attn\.kv_a_proj|\.self_attn\.kv_b_proj\.": "latent attention (MLA) in the layer",
}
"""Patterns of tensors' names, and what has them."""
KINDS = ("eagle", "eagle3", "mtp")
"""What the library speculators calls the heads that are read here."""


def refuse_others(files: HeadFiles, names: set[str]) -> None:
    """Refuse heads of which something is known that a module has not; `names` are the head's own tensors.

    Raises:
        InputError: says what it is.
    """
    kind = files.raw.get("speculators_model_type")
    if kind is not None and kind not in KINDS:
        raise InputError(
            f"{files.where}: speculators_model_type {kind!r:.80} cannot be expressed as a module; "
            f"expected one of: {', '.join(KINDS)}"
        )
    for pattern, what in TENSORS.items():
        if name := next((name for name in sorted(names) if re.search(pattern, name)), None):
            raise InputError(f"{files.folder}: {name} says that this is {what}, which cannot be expressed as a module")

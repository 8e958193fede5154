"""Kinds and ranges of a GGUF file's metadata: whatever is read later was checked here, before anything is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.limits import MOST, MOST_OF_ANYTHING

MOST_ALIGNMENT = 1 << 16
"""Bytes: beyond it a damaged file would place its tensors anywhere."""
LEAST_ID = -1
"""How some converters say that there is no such token."""

Check = Callable[[Any], bool]


def _whole(least: int = 0, most: int = MOST_OF_ANYTHING) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float = -math.inf) -> Check:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and value >= least


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _one_or_each_layer(check: Check) -> Check:
    listed = _list_of(check)
    return lambda value: check(value) or (listed(value) and 0 < len(value) <= MOST["num_layers"])


def _size(name: str) -> tuple[Check, str]:
    return _one_or_each_layer(_whole(0, MOST[name])), f"a whole number up to {MOST[name]}"


WHOLE = (_one_or_each_layer(_whole()), "a whole number")
NUMBER = (_one_or_each_layer(_number(0)), "a number of at least 0")
TEXT, FLAG = (_text, "a text"), (_flag, "true or false")
TOKEN = (_whole(LEAST_ID, (1 << 32) - 1), "a token's id")

GENERAL: Mapping[str, tuple[Check, str]] = {
    "general.alignment": (
        lambda value: _whole(1, MOST_ALIGNMENT)(value) and value & (value - 1) == 0,
        f"a power of two up to {MOST_ALIGNMENT}",
    ),
    "general.architecture": TEXT,
    "general.name": TEXT,
    "general.license": TEXT,
    "split.count": (_whole(0, 1 << 16), "a number of parts"),
    "tokenizer.ggml.model": TEXT,
    "tokenizer.ggml.pre": TEXT,
    "tokenizer.ggml.tokens": (_list_of(_text), "a list of texts"),
    "tokenizer.ggml.merges": (_list_of(lambda merge: _text(merge) and merge != ""), "a list of texts"),
    "tokenizer.ggml.scores": (_list_of(_number()), "a list of numbers"),
    "tokenizer.ggml.token_type": (_list_of(_whole()), "a list of whole numbers"),
    "tokenizer.ggml.add_space_prefix": FLAG,
    "tokenizer.ggml.add_bos_token": FLAG,
    "tokenizer.ggml.add_eos_token": FLAG,
    "tokenizer.chat_template": TEXT,
    **{
        f"tokenizer.ggml.{name}_token_id": TOKEN
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "unk", "pad")
    },
}
ARCHITECTURE: Mapping[str, tuple[Check, str]] = {
    "block_count": _size("num_layers"),
    "context_length": _size("context_length"),
    "embedding_length": _size("hidden_size"),
    "feed_forward_length": _size("intermediate_size"),
    "attention.head_count": _size("num_heads"),
    "attention.head_count_kv": _size("num_kv_heads"),
    "attention.key_length": _size("head_dim"),
    "attention.value_length": _size("head_dim"),
    "attention.sliding_window": WHOLE,
    "attention.sliding_window_pattern": (
        lambda value: WHOLE[0](value) or _list_of(_flag)(value),
        "a whole number, or true or false for each layer",
    ),
    "attention.layer_norm_rms_epsilon": NUMBER,
    "attn_logit_softcapping": NUMBER,
    "final_logit_softcapping": NUMBER,
    "expert_count": WHOLE,
    "rope.dimension_count": WHOLE,
    "rope.freq_base": NUMBER,
    "rope.freq_base_swa": NUMBER,
    "rope.scale_linear": NUMBER,
    "rope.scaling.type": TEXT,
    "rope.scaling.factor": NUMBER,
    "rope.scaling.original_context_length": _size("context_length"),
    "rope.scaling.yarn_beta_fast": NUMBER,
    "rope.scaling.yarn_beta_slow": NUMBER,
}
"""By the names behind `{architecture}.`; what else a file says there is named as unused, and not read."""


def check_metadata(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse a value of another kind or out of range.

    Raises:
        InputError: names the key, its value and what was expected.
    """
    prefix = f"{metadata.get('general.architecture')}."
    for key, value in metadata.items():
        known = GENERAL.get(key) or (ARCHITECTURE.get(key.removeprefix(prefix)) if key.startswith(prefix) else None)
        if known and not known[0](value):
            raise InputError(f"{path}: {key} is {value!r:.100}; expected {known[1]}")

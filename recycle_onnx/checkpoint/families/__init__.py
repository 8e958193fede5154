"""The families that are known. docs/adding-a-family.md says how to add one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families import (
    arcee,
    ernie4_5,
    exaone4,
    gemma2,
    gemma3,
    glm,
    gpt2,
    gpt_neox,
    granite,
    helium,
    hunyuan,
    llama,
    mimo,
    mistral,
    olmo2,
    olmo3,
    opt,
    phi3,
    qwen2,
    qwen3,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)  # fmt: skip
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import Family
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json

MODULES = (
    llama, mistral, qwen2, qwen3, smollm3, phi3, granite, olmo2, olmo3, gemma2, gemma3, ernie4_5,
    exaone4, hunyuan, glm, stablelm, helium, arcee, seed_oss, starcoder2, mimo, gpt2, gpt_neox, opt,
)  # fmt: skip
FAMILIES: dict[str, Family] = {kind: module.FAMILY for module in MODULES for kind in module.FAMILY.model_types}

RECURRENT = (
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "nemotron_h",
    "qwen3_next", "recurrent_gemma", "rwkv", "rwkv7", "xlstm", "zamba", "zamba2",
)  # fmt: skip
"""Kinds of models that keep a state of fixed size: nothing in it can be cropped after a refused token."""
EXPERTS = (
    "dbrx", "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe", "llama4", "llama4_text",
    "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
)  # fmt: skip
"""Kinds of models whose layers choose among experts: no graph here has that."""


def read_config(path: Path) -> tuple[BaseConfig, Family]:
    """Read a `config.json`.

    Raises:
        InputError: the family is not supported, or a value is missing, contradictory or not known.
    """
    return describe(read_json(path), path)


def describe(raw: Mapping[str, Any], path: Path) -> tuple[BaseConfig, Family]:
    """Describe a base by the content of its `config.json`; `path` is for messages."""
    family = find(raw.get("model_type"), path)
    text = raw.get("text_config")  # of a model that sees images too
    config = Config({**raw, **text, "model_type": raw["model_type"]} if isinstance(text, Mapping) else raw, path)
    try:
        base = family.describe(config)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # a kind of value that no one expects there
        raise InputError(f"{path}: a value is of a wrong kind or out of range ({error})") from error
    config.refuse_unread()
    if problem := base.contradiction():
        raise InputError(f"{path}: {problem}")
    return replace(base, genai_type=family.genai_type, raw=raw), family


def find(model_type: object, path: Path) -> Family:
    """Return the family of a `model_type`.

    Raises:
        InputError: there is none.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    supported = f"supported: {', '.join(FAMILIES)}"
    for kinds, what in ((RECURRENT, "a recurrent model"), (EXPERTS, "a mixture of experts")):
        if model_type in kinds:
            raise InputError(f"{path}: model_type {model_type!r} is {what}, which cannot be exported yet; {supported}")
    raise InputError(
        f"{path}: model_type {model_type!r} is not supported; {supported}; docs/adding-a-family.md tells how to add one"
    )

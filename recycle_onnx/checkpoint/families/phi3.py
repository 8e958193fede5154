"""Phi 3 and Phi 4 mini: Llama with packed projections, and perhaps LongRoPE and a head rotated in part."""

from __future__ import annotations

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.family import (
    ATTENTION,
    GATE,
    KEY,
    MLP,
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
    """Describe a Phi 3; older configs call LongRoPE `su` or `yarn`."""
    rope = read_rope(config, head_size(config), aliases={"su": "longrope", "yarn": "longrope"})
    return decoder(config, rope=rope, sliding=config.value("sliding_window") is not None)


FAMILY = Family(
    ("phi3",),
    describe,
    {f"{ATTENTION}.qkv_proj": StoredMatrix((QUERY, KEY, VALUE)), f"{MLP}.gate_up_proj": StoredMatrix((GATE, UP))},
    genai_type="phi3",
)

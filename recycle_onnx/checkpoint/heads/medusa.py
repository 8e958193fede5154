"""Medusa (arXiv 2401.10774): heads that read the hidden state alone, one for each place of a chain.

Head k is residual blocks and an LM head; from the base's final hidden state at p it guesses the token p+2+k. The names
are those of the authors, whose numbers say everything, or vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.recycler import WITHOUT_LAYERS, RecyclerConfig, block_name, place_head
from recycle_onnx.limits import MOST


def conventions(files: HeadFiles, base: BaseConfig) -> RecyclerConfig:
    """Describe Medusa heads; how many there are, and of how many blocks, follows from their tensors.

    (A config often says another number than its file has.)
    """
    return RecyclerConfig(
        layer=base.model_type,
        join=None,
        places=_count(files, "places.{}."),
        blocks=_count(files, "places.0.projection.{}.weight"),
        projection_bias=files.has(f"{block_name(0, 0)}.bias"),
        **WITHOUT_LAYERS,
    )


def _count(files: HeadFiles, names: str) -> int:
    """Count the numbers from 0 on with which a tensor's name begins so."""
    numbers = range(MOST["places"] + 1)
    return next(n for n in numbers if not any(name.startswith(names.format(n)) for name in files.names))


def _names(block: str, head: str) -> Mapping[str, str]:
    """Return beginnings of names for every place and block that there may be, by patterns."""
    numbers = list(product(range(MOST["places"]), range(MOST["blocks"])))
    of_blocks = {block.format(place=p, block=b): f"{block_name(p, b)}." for p, b in numbers}
    return of_blocks | {head.format(place=p, last=b + 1): place_head(p) for p, b in numbers}  # behind the last block


FORMAT = HeadFormat(
    "medusa",
    signs=("0.0.linear.weight",),
    tensors=_names("{place}.{block}.linear.", "{place}.{last}.weight"),
    conventions=conventions,
    source="FasterDecoding/Medusa, medusa/model/medusa_model.py",
)
INSIDE = HeadFormat(
    "medusa, inside",
    signs=("medusa_head.0.0.linear.weight",),
    tensors=_names("medusa_head.{place}.{block}.linear.", "medusa_head.{place}.{last}.weight"),
    conventions=conventions,
    inside=True,
    source=FORMAT.source,
)
OF_VLLM = HeadFormat(
    "medusa, vLLM",
    signs=("blocks.0.layers.0.weight",),
    tensors=_names("blocks.{place}.layers.{block}.", "lm_heads.{place}.weight"),
    conventions=conventions,
    source="vllm-project/vllm, model_executor/models/medusa.py",
)

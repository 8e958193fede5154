"""Other ways to read a module: each doubtful convention flipped alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig
from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.recycler import ATTENTION
from recycle_onnx.checkpoint.taps import FINAL_PRE, LAYER, layer_of
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import FINAL_POST

FINAL_NORM = "norm.weight"
"""A module's final norm, and below the base's."""
BASE_NORM = "model.norm.weight"
IN_A_CHAIN = "recycle"
"""The convention that makes no difference before the second place of a chain."""


@dataclass(frozen=True)
class MeasuredModule:
    """A module to measure: its config, its tensors, and the tokens that it has logits for if not all."""

    config: RecyclerConfig
    tensors: Tensors
    draft_ids: list[int] | None = None


@dataclass(frozen=True)
class Reading:
    """A module's config with one convention changed.

    `convention` is which, `value` what it is read as. `tensors` are those that the module lacks so far. `shift` is how
    many tokens further the embedding stands than declared, which no config can say.
    """

    convention: str
    value: str
    config: RecyclerConfig
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    shift: int = 0

    @property
    def expressible(self) -> bool:
        """Whether a module can be read so."""
        return self.shift == 0


def readings(config: RecyclerConfig, weights: BaseWeights) -> Iterator[Reading]:
    """Yield the other readings of a module on the base with these `weights`."""
    base = weights.base
    for taps in _other_taps(config.tap, base):
        yield Reading("tap", " + ".join(taps), replace(config, tap=taps))
    if config.join is None:
        for shift in (-1, 1):
            yield Reading("position", f"the first place's token is p+{2 + shift}", config, shift=shift)
        return
    yield Reading("concat", " + ".join(config.concat[::-1]), replace(config, concat=config.concat[::-1]))
    if config.join == ATTENTION:
        residual = "hidden_state" if config.residual != "hidden_state" else "normed_hidden_state"
        yield Reading("residual", residual, replace(config, residual=residual))
    if config.final_norm:
        recycle = "pre_norm" if config.recycle == "post_norm" else "post_norm"
        yield Reading(IN_A_CHAIN, recycle, replace(config, recycle=recycle))
    elif base.norm.kind == "rms":
        own = weights.float32(BASE_NORM) + np.float32(base.norm.plus_one)
        normed = replace(config, final_norm=True)  # a chain still goes on from the state before that norm
        yield Reading("final_norm", "the base's own", normed, {FINAL_NORM: own})
    for shift in (-1, 1):
        yield Reading("position", f"embedding of token p+{1 + shift} beside the state at p", config, shift=shift)


def _other_taps(taps: tuple[str, ...], base: BaseConfig) -> Iterator[tuple[str, ...]]:
    """Yield taps a layer earlier and later, the other side of the final norm, and several in the opposite order."""
    count = base.num_layers
    if taps == (FINAL_POST,):
        yield (FINAL_PRE,)
        if count > 1:
            yield (f"{LAYER}{count - 1}",)
        return
    if taps == (FINAL_PRE,):
        yield (FINAL_POST,)
    numbers = [count if tap == FINAL_PRE else layer_of(tap) for tap in taps]
    for step in (-1, 1):
        moved = [number + step for number in numbers]
        if 0 not in numbers and min(moved) >= 1 and max(moved) <= count:
            yield tuple(FINAL_PRE if number == count else f"{LAYER}{number}" for number in moved)
    if len(taps) > 1:
        yield taps[::-1]

"""What tuning the scales of a quantized model needs, and what it gives.

The exporter, which needs no torch, and the training, which knows no graphs, meet here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.weights import FloatTensors
from recycle_onnx.progress import Progress

Floats = NDArray[np.float32]


class Grid(NamedTuple):
    """The rows of a quantized matrix: `codes` i8 [N, B, block size] less zero points, times `scales` f32 [N, B]."""

    codes: NDArray[np.int8]
    scales: Floats


class FloatModel(NamedTuple):
    """The model before it was quantized: `weights` by neutral names, and their `digest`.

    `folder` holds its text files.
    """

    base: BaseConfig
    weights: FloatTensors
    digest: str
    folder: Path


@dataclass(frozen=True)
class Tuned:
    """The tuned scales and norms by neutral names, and the divergence on held-out text (nats a token).

    `scales` has an array [N, B] for each grid of a matrix; `tokens` is how many were learnt from.
    """

    scales: Mapping[str, Sequence[Floats]]
    norms: Mapping[str, Floats]
    tokens: int
    before: float
    after: float


class Tuner(Protocol):
    """A function that finds better scales; `recycle_onnx.training.scales.tune` is one."""

    def __call__(
        self,
        model: FloatModel,
        matrices: Mapping[str, Sequence[Grid]],
        windows: NDArray[np.int64],
        report: Progress,
        *,
        write: bool,
    ) -> Tuned | None:
        """Tune on `windows` [n, length] of token ids and, with `write`, on text that the model writes.

        None where it would take too long here, or is no better; `report` has been told so.
        """

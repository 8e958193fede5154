"""A text that the full model reads in runs of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.runtime.model import Model


def read(model: Model, ids: list[int], size: int) -> list[NDArray[Any]]:
    """Logits, keys and values of a text that is read in runs of `size` tokens."""
    full = model.decoder("full").full
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    logits = [full.step(piece, keep=len(piece)).copy() for piece in pieces]
    return [np.concatenate(logits), *(rows.copy() for rows in full.rows())]

"""A text through the full model and, with its hidden states, through the module: to compare graphs with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from recycle_onnx.bundle import Manifest
from recycle_onnx.contract import Kind
from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.decoding.half import Floats, Half, States

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.1, "int4": 0.5}
"""Largest allowed difference by precision, as a part of the largest logit: rounding is less, a wrong graph more."""
INT8_CACHE = 0.1
"""The same where keys and values are integers, for precisions that allow less."""
TOKENS = 12
"""Of a text for a check: enough for a prompt, steps behind it, and rows that attend over both."""


class BothHalves:
    """A runner of short texts through both halves; every text starts anew."""

    def __init__(self, manifest: Manifest, sessions: Mapping[Kind, ort.InferenceSession]) -> None:
        self.manifest, self.sessions = manifest, sessions

    def logits(self, ids: list[int], split: int) -> list[Floats]:
        """Return logits [S, V] of the full model, and [S-1, V] of a module.

        The first `split` tokens are read at once, the others one by one.
        """
        rows, hidden = self._run("full", ids, None, split)
        if "recycler" not in self.sessions:
            return [rows]
        return [rows, self._run("recycler", ids[1:], hidden[:-1], split - 1)[0]]

    def _run(self, kind: Kind, ids: list[int], hidden_in: States | None, split: int) -> tuple[Floats, States]:
        half = Half(self.sessions[kind], self.manifest.graphs[kind], self.manifest.context_length)
        states: States = np.empty((len(ids), half.spec.state_size), half.spec.float_type)
        rows = []
        for piece in (slice(0, split), *(slice(i, i + 1) for i in range(split, len(ids)))):
            states_in = None if hidden_in is None else hidden_in[piece]
            rows.append(half.read(ids[piece], states_in, states[piece], keep=len(ids[piece])).copy())
        return np.concatenate(rows), states


def tolerance(manifest: Manifest) -> float:
    """Return the largest allowed difference between runs of a bundle."""
    allowed = TOLERANCE[manifest.precision]
    return allowed if manifest.graphs["full"].cache_type is None else max(allowed, INT8_CACHE)


def some_text(manifest: Manifest, stop_ids: Sequence[int] = ()) -> list[int]:
    """Return a few tokens, always the same ones, none of which is among `stop_ids`."""
    allowed = np.setdiff1d(np.arange(manifest.graphs["full"].vocab_size), np.array(stop_ids, np.int64))
    length = min(TOKENS, manifest.context_length)
    ids: list[int] = np.random.default_rng(0).choice(allowed, length).tolist()
    return ids


def difference(expected: Floats, actual: Floats) -> float:
    """Return the largest difference, as a part of the largest logit.

    Raises:
        RecycleError: logits that are not finite, or all 0.
    """
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise RecycleError("logits are not finite; the weights are damaged")
    if not (largest := np.abs(expected).max()):
        raise RecycleError("all logits are 0; the weights are empty")
    return float(np.abs(expected - actual).max() / largest)

"""What an export checks before it is called done: the graphs load, agree with themselves, and with torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import GraphSpec, Kind
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.runtime.half import Floats, Half
from recycle_onnx.runtime.sessions import open_mapped

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.1, "int4": 0.5}
"""Largest allowed difference by precision, as a part of the largest logit: rounding is less, a wrong graph more."""
TOKENS = 12
STEPS = 3


@dataclass(frozen=True)
class SelfCheck:
    """Largest differences, as a part of the largest logit: prefill against prefill and steps, graph against torch."""

    prefill_against_steps: float
    against_reference: float | None


def check_bundle(bundle: Bundle, reference: Path | None, stop_ids: list[int]) -> SelfCheck:
    """Run both graphs of a fresh bundle.

    Raises:
        RecycleError: a graph does not load, gives values that are not finite, or departs from itself or from torch.
    """
    vocab_size = bundle.manifest.graphs["full"].vocab_size
    length = min(TOKENS, bundle.manifest.context_length)
    allowed = np.setdiff1d(np.arange(vocab_size), stop_ids)
    ids = np.random.default_rng(0).choice(allowed, length).tolist()
    halves = _Halves(bundle)
    whole = halves.logits(ids, split=length)
    pieces = halves.logits(ids, split=length - STEPS)
    tolerance = TOLERANCE[bundle.manifest.precision]
    steps = max(_difference(a, b, "prefill and steps", tolerance) for a, b in zip(whole, pieces, strict=True))
    if reference is None or not reference.exists():
        return SelfCheck(steps, None)
    return SelfCheck(steps, _against_reference(halves, reference, tolerance))


class _Halves:
    """Runs a text through the full model and, with its hidden states, through the module."""

    def __init__(self, bundle: Bundle) -> None:
        self.limit = bundle.manifest.context_length
        self.draft = bundle.manifest.draft_vocabulary
        self.specs: dict[Kind, GraphSpec] = {}
        self.sessions = {}
        for kind in ("full", "recycler"):
            if kind in bundle.manifest.graphs:
                self.specs[kind] = bundle.manifest.graphs[kind]
                self.sessions[kind] = open_mapped(bundle, kind, "cpu", None)

    def logits(self, ids: list[int], split: int) -> list[Floats]:
        """Logits [S, V] of each half: the first `split` tokens at once, the others one by one."""
        rows, hidden = self._run("full", ids, None, split)
        if "recycler" not in self.specs:
            return [rows]
        return [rows, self._run("recycler", ids[1:], hidden[:-1], split - 1)[0]]

    def _run(self, kind: Kind, ids: list[int], hidden_in: Floats | None, split: int) -> tuple[Floats, Floats]:
        half = Half(self.sessions[kind], self.specs[kind], self.limit)
        states = np.empty((len(ids), half.spec.state_size), half.spec.float_type)
        rows = []
        for piece in (slice(0, split), *(slice(i, i + 1) for i in range(split, len(ids)))):
            given = None if hidden_in is None else hidden_in[piece]
            rows.append(half.read(ids[piece], given, states[piece], keep=len(ids[piece])).copy())
        return np.concatenate(rows), states


def _against_reference(halves: _Halves, path: Path, tolerance: float) -> float:
    try:
        reference = load_file(path)
        ids, rows = reference["input_ids"].tolist(), reference["positions"]
        expected = (reference["logits"], reference["recycler_logits"])
    except (SafetensorError, KeyError, OSError) as error:
        raise InputError(
            f"{path}: damaged ({error}); train again, or delete it to go without the comparison"
        ) from error
    if halves.draft is not None:
        expected = (expected[0], expected[1][:, halves.draft])
    found = halves.logits(ids, split=len(ids))
    pairs = zip(expected, found, strict=True)
    return max(_difference(a, b[rows], "torch and the graphs", tolerance) for a, b in pairs)


def _difference(expected: NDArray[np.float32], found: NDArray[np.float32], what: str, tolerance: float) -> float:
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise RecycleError(f"self-check: {what} give logits that are not finite; the weights are damaged")
    difference = float(np.abs(expected - found).max() / np.abs(expected).max())
    if difference > tolerance:
        raise RecycleError(
            f"self-check: {what} differ by {difference:.1e} of the largest logit, allowed {tolerance:.0e}"
        )
    return difference

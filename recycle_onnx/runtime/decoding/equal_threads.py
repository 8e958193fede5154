"""Whether sessions with fewer threads give here, to the bit, what sessions with all give: so they can be exchanged.

Kernels share rows, columns and heads among threads, and none of these in two. A trial shows whether that is all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle
from recycle_onnx.runtime.decoding.half import Half, States
from recycle_onnx.runtime.decoding.trials import SIZES, Remembered, place, places, random_text

LONG_ROWS, LONG_BYTES = 4000, 1 << 25
"""Tokens before the longest runs of a trial, at most so many and with keys and values of so many bytes, which are there
three times: some 700 tokens of a base of 135 M parameters. Texts of 4000 were tried by hand (docs/performance.md)."""


class EqualThreads:
    """Whether a bundle's sessions on the CPU give the same with either of two numbers of threads."""

    def __init__(self, bundle: Bundle, threads: int, fewer: int) -> None:
        self._remembered = Remembered(f"{bundle.digest[:32]}-cpu-{threads}-as-{fewer}")

    def known(self, pairs: Sequence[tuple[Half, Half]]) -> bool:
        """Tell whether they do; `pairs` are fresh halves of one graph each, which a trial uses."""
        return self._remembered.outcome(lambda: all(same_runs(one, other) for one, other in pairs))


def same_runs(one: Half, other: Half) -> bool:
    """Let two fresh halves of the same graph read the same in runs of all sizes; tell whether they give the same.

    Behind few tokens, a few hundred, and as many as take little memory. Takes the time of some 18 steps of each.
    """
    for start, end in sorted({*places(one), long_place(one)}):
        ids, past = random_text(one, start, end)
        for size in (1, *SIZES):
            run = ids[start : start + size]
            outcomes = [_outcome(half, ids[:start], past, run) for half in (one, other)]
            if not all(np.array_equal(mine, its) for mine, its in zip(*outcomes, strict=True)):
                return False
    return True


def long_place(half: Half) -> tuple[int, int]:
    """Return where runs begin and end behind a long text, within the context: attention may be shared otherwise."""
    return place(half, min(LONG_ROWS, LONG_BYTES // max(1, half.spec.row_bytes)))


def _outcome(half: Half, ids: list[int], past: list[NDArray[Any]], run: list[int]) -> list[NDArray[Any]]:
    """Return what a run gives behind `past`: logits, hidden states, and the keys and values that it adds."""
    half.restore(ids, past)
    logits = half.step(run, len(run), _states(half, len(run)))
    return [value.copy() for value in (logits, half.hidden[: len(run)], *(rows[:, len(ids) :] for rows in half.rows()))]


def _states(half: Half, rows: int) -> States | None:
    """Return hidden states for a module to read; the full model reads none."""
    if half.spec.kind == "full":
        return None
    states = np.random.default_rng(0).standard_normal((rows, half.spec.state_size))
    return states.astype(half.spec.float_type)

"""What single steps cost: full steps on one to five tokens, recycle steps on one and two rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from recycle_onnx.runtime.model import Model

MOST_TOKENS = 5
"""A full step verifies a chain of up to four proposals, with the token before them."""


class StepTimer:
    """A timer of the kinds of steps after a prompt: `full_1` … `full_5`, with a module `recycle_1`, `recycle_2`.

    They take turns, as full and recycle steps do in decoding; the first round, which allocates, is left out.
    """

    def __init__(self, model: Model, prompt: list[int]) -> None:
        self._length = len(prompt)
        self._decoder = decoder = model.decoder("auto")
        decoder.prefill(prompt)
        token = prompt[-1]
        self._cycles: list[dict[str, Callable[[], object]]] = []
        for count in range(1, MOST_TOKENS + 1):
            cycle: dict[str, Callable[[], object]] = {
                f"full_{count}": partial(decoder.full_step, [token] * count, keep=count)
            }
            if decoder.recycler is not None and count <= 2:
                cycle[f"recycle_{count}"] = partial(decoder.recycle_step, [token] * count)
            self._cycles.append(cycle)
        if decoder.recycler is not None:
            decoder.start_recycling(token)
        self.samples: dict[str, list[float]] = {}
        self.round()
        self.samples = {}

    def round(self) -> None:
        """Run every kind of step once."""
        for cycle in self._cycles:
            for kind, step in cycle.items():
                started = time.perf_counter()
                step()
                self.samples.setdefault(kind, []).append(1e3 * (time.perf_counter() - started))
            self._decoder.keep(self._length)

    def medians(self) -> dict[str, float]:
        """Return median milliseconds by kind."""
        return {kind: statistics.median(values) for kind, values in self.samples.items()}


def predicted_speedup(
    strategy: str,
    step: dict[str, float],
    chain: int,
    acceptance: float | None,
    tokens_per_full_run: float,
    *,
    one_run: bool = False,
) -> float | None:
    """Predict the speed-up against `full` from step costs and acceptance; None where a step is not known.

    `one_run`: a chain of the module takes one run, however long it is.
    """
    if strategy == "full":
        return 1.0
    if strategy == "alternate":
        return 2 * step["full_1"] / (step["full_2"] + step["recycle_2"])
    if strategy != "verify" or chain + 1 > MOST_TOKENS:
        return None
    rate = acceptance or 0.0
    further = 0.0 if one_run else (chain - 1) * step["recycle_1"]
    recycling = rate * step["recycle_2"] + (1 - rate) * step["recycle_1"] + further
    return tokens_per_full_run * step["full_1"] / (step[f"full_{chain + 1}"] + recycling)

"""How long a training goes on, and the learning rate on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recycle_onnx.errors import InputError

WARM_UP = 0.05
"""Part of the budget in which the learning rate rises: moments are not known before."""
LOWEST = 0.1
"""Part of the peak learning rate that is left at the end."""
DEFAULT_MINUTES = 15.0
"""Of a training without a budget, if acceptance never stops rising."""
PATIENCE = 4
"""Measurements of held-out acceptance without a rise that end a training without a budget."""
RISE = 0.002
"""Less than this is within what acceptance on the held-out windows is known to."""


@dataclass(frozen=True)
class Budget:
    """A limit in steps, tokens or minutes.

    With none of them training goes on until acceptance stops rising, for 15 minutes at most.
    """

    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if len(limits) > 1:
            raise InputError(f"expected one budget, found {' and '.join(f'--{name}' for name in limits)}")
        for name, value in limits.items():
            if value <= 0:
                raise InputError(f"--{name} is {value}; expected more than 0")

    @property
    def is_open(self) -> bool:
        """Whether acceptance decides when it is over."""
        return self.steps is None and self.tokens is None and self.minutes is None

    def progress(self, step: int, tokens: int, seconds: float) -> float:
        """Return the part of the budget that is spent, 1 or more when it is over."""
        if self.steps is not None:
            return step / self.steps
        if self.tokens is not None:
            return tokens / self.tokens
        return seconds / (60 * (self.minutes or DEFAULT_MINUTES))


def learning_rate(peak: float, progress: float, step: int) -> float:
    """Compute a learning rate: a linear warm-up over the first part, then a cosine down to a tenth."""
    # Never 0: a step with no learning rate would be lost.
    warm = min(1.0, max(progress, 1e-3) / WARM_UP) if step else 1e-3 / WARM_UP
    after = min(1.0, max(0.0, (progress - WARM_UP) / (1 - WARM_UP)))
    return peak * warm * (LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * after)))


class Plateau:
    """A watcher of what is measured on held-out text, which tells when it has stopped rising."""

    def __init__(self) -> None:
        self.best, self.since = 0.0, 0

    def reached(self, value: float) -> bool:
        """Note a measurement; tell whether there was no rise for too long."""
        if value > self.best + RISE:
            self.best, self.since = value, 0
        else:
            self.since += 1
        return self.since >= PATIENCE

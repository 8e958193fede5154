"""Means of samples, and how sure they are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

NORMAL_95 = 1.96
"""Standard errors on either side of the mean that hold 95 % of a normal distribution."""


class Estimate(NamedTuple):
    """A mean and its 95 % interval (normal approximation over independent samples)."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of `values` with its interval; of a single value, without a width."""
    mean = statistics.fmean(values)
    half = NORMAL_95 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(mean, mean - half, mean + half)


def paired(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return the mean difference between two measurements of the same things, `others` less `values`."""
    return estimate([other - value for value, other in zip(values, others, strict=True)])

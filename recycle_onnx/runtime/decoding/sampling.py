"""Choosing a token from logits, so that the same seed gives the same text under every strategy.

The choice at a position depends on the logits, the seed and the position alone: argmax of log-probability plus
Gumbel noise (the Gumbel-max trick), where the noise is a hash of (seed, position, token id).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.errors import TextError
from recycle_onnx.runtime.settings import check

MASK = (1 << 64) - 1
"""Keeps 64 bits of Python's unbounded integers, as SplitMix64 computes with."""
GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's step: 2^64 divided by the golden ratio, so that neighbouring positions get keys far apart."""
LARGEST_NOISE_GAP = 41.0
"""Gumbel noise from 53-bit uniforms lies in (-3.7, 36.8): a logit this far below the best can never win."""

COLDEST = 1e-6
"""What lower temperatures count as: logits divided by them would no longer be numbers."""

MOST_OF_A_NUCLEUS = 10.0
"""Tokens this close to the best, in nats, usually have the probability that `top_p` asks for."""


class NothingAllowedError(TextError):
    """An error where no token may stand: a proposer then proposes none, and generation fails."""


class Chooser(Protocol):
    """An object that says which token stands at a position."""

    def choose(self, logits: NDArray[np.float32], position: int, vocabulary: NDArray[np.int64] | None = None) -> int:
        """Choose the token id for `position` (tokens before it), from logits [V] of the ids in `vocabulary`.

        Raises:
            NothingAllowedError: there is no such token.
        """
        ...

    def confidence(self, logits: NDArray[np.float32], token: int, vocabulary: NDArray[np.int64] | None = None) -> float:
        """Return the probability of a `token` that was just chosen from these logits."""
        ...

    def fast_forward(self, position: int) -> list[int]:
        """Return the tokens from `position` on, as far as what stands before leaves no choice.

        They are to be verified like any proposal.
        """
        ...

    def fitting(self, tokens: list[int], position: int) -> list[int]:
        """Return the first of `tokens` that may stand from `position` on, as far as is known without logits."""
        ...


def choose_if_allowed(
    chooser: Chooser, logits: NDArray[np.float32], position: int, vocabulary: NDArray[np.int64] | None
) -> int | None:
    """Choose a proposal for `position`; None where none is allowed, or there is no way to tell."""
    try:
        return chooser.choose(logits, position, vocabulary)
    except TextError:
        return None


def probability(logits: NDArray[np.float32], index: int) -> float:
    """Return the softmax of logits [V] at `index`."""
    return float(1 / np.exp(logits - logits[index]).sum())


@dataclass(frozen=True)
class Sampling:
    """A chooser by temperature and candidates.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 keep every token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check(field.name, getattr(self, field.name))

    def choose(self, logits: NDArray[np.float32], position: int, vocabulary: NDArray[np.int64] | None = None) -> int:
        """Choose the token id for `position` (tokens before it), from logits [V].

        `vocabulary` [V] holds the ids that the logits belong to where those are not 0 … V - 1: noise goes by id.
        """
        if self.temperature == 0:
            best = int(logits.argmax())
            return best if vocabulary is None else int(vocabulary[best])
        scaled = logits.astype(np.float64) / max(self.temperature, COLDEST)
        rows = self._candidates(scaled)
        ids = rows if vocabulary is None else vocabulary[rows]
        return int(ids[(scaled[rows] + self.noise(position, ids)).argmax()])

    def confidence(self, logits: NDArray[np.float32], token: int, vocabulary: NDArray[np.int64] | None = None) -> float:
        """Return the probability of a token, before temperature."""
        return probability(logits, token if vocabulary is None else int(np.searchsorted(vocabulary, token)))

    def fast_forward(self, position: int) -> list[int]:
        """Return no tokens: without processors every token may come."""
        return []

    def fitting(self, tokens: list[int], position: int) -> list[int]:
        """Return all tokens: without processors each may stand anywhere."""
        return tokens

    def _candidates(self, scaled: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the ids that may be chosen, ascending."""
        ids = np.flatnonzero(scaled >= scaled.max() - LARGEST_NOISE_GAP)
        if 0 < self.top_k < len(ids):
            ids = np.sort(ids[np.argsort(-scaled[ids], kind="stable")[: self.top_k]])
        if self.top_p < 1:
            ids = self._nucleus(scaled, ids)
        if self.min_p > 0:
            ids = ids[scaled[ids] >= scaled.max() + math.log(self.min_p)]
        return ids

    def _nucleus(self, scaled: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the fewest most likely ids whose probability reaches `top_p` (arXiv 1904.09751)."""
        below = scaled[ids] - scaled.max()
        enough = self.top_p * np.exp(below).sum()
        likely = ids[below >= -MOST_OF_A_NUCLEUS]  # to sort a whole vocabulary takes longer than all the rest
        for part in (likely, ids):
            order = part[np.argsort(-scaled[part], kind="stable")]
            weights = np.exp(scaled[order] - scaled[order[0]])
            reached = np.cumsum(weights)
            if reached[-1] >= enough:
                break
        return np.sort(order[reached - weights < enough])

    def noise(self, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return standard Gumbel noise for token `ids` at `position`."""
        key = _mix_int(_mix_int(self.seed & MASK) + position * GOLDEN)
        # 53 bits, as many as float64 holds exactly; and half a step more, for 0 has no logarithm.
        bits = _mix(ids.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key)) >> np.uint64(11)
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
        return -np.log(-np.log(uniform))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix bits by SplitMix64's finaliser: every input bit changes about half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(value: int) -> int:
    return int(_mix(np.array([(value + GOLDEN) & MASK], np.uint64))[0])

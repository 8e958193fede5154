"""What was measured of a module's conventions, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint import RecyclerConfig
from recycle_onnx.conventions.readings import IN_A_CHAIN, MeasuredModule, Reading
from recycle_onnx.errors import InputError

DEVIATIONS = 3.5
"""How many standard deviations are more than noise: ten readings are tried, and one in 400 modules is named wrongly."""
GAIN = 0.005
"""A gain of less is not worth another reading, however certain it is."""
FEW = 0.1
"""Where no more proposals than that are right, something else is wrong: the most frequent token gives nearly as much.

(An untrained module of samples/stories is right on 2.3 %, and on 6.5 % of the tokens that its hidden state decides.)
"""
OF_THE_CONVENTIONS = ("concat", "tap", "residual", "recycle", "final_norm", "norms_before_projection", "fusion")
"""What `config.json` records of a module as it was declared, and as it was taken."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Another reading: how much more often it is right than the declared one on the same proposals, and how certainly.

    `deviations` are those of the difference, from proposals on which the two disagree (McNemar's test).
    """

    reading: Reading
    acceptance: float
    declared: float
    deviations: float

    @property
    def better(self) -> bool:
        """Whether it is better by more than noise, and good for something."""
        more = self.deviations > DEVIATIONS and self.acceptance - self.declared > GAIN
        return more and self.acceptance > FEW

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "convention": self.reading.convention,
            "value": self.reading.value,
            "acceptance": self.acceptance,
            "declared_acceptance": self.declared,
            "deviations": self.deviations,
            "better": self.better,
        }


def compared(reading: Reading, ours: Flags, theirs: Flags) -> Compared:
    """Compare a reading with the declared one, by which of the same proposals were right."""
    wins, losses = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    deviations = (wins - losses) / max(1, wins + losses) ** 0.5
    return Compared(reading, _mean(theirs), _mean(ours), deviations)


def _mean(flags: Flags) -> float:
    return float(flags.mean()) if flags.size else 0.0


@dataclass(frozen=True)
class ConventionVerdict:
    """The acceptance of a module as it is declared, at both places of chains of two, and every other reading's."""

    module: MeasuredModule
    acceptance: float
    second: float
    proposals: int
    others: tuple[Compared, ...]

    @property
    def best(self) -> Compared | None:
        """The reading that is better by most, if any is better by more than noise.

        What only chains show counts last: they go wrong too where something else is read wrong.
        """
        better = [other for other in self.others if other.better]
        first = [other for other in better if other.reading.convention != IN_A_CHAIN]
        return max(first or better, key=lambda other: other.acceptance - other.declared, default=None)

    @property
    def hopeless(self) -> bool:
        """Whether hardly anything is right, however it is read."""
        return self.acceptance < FEW

    def extra_tensors(self) -> Mapping[str, NDArray[np.float32]]:
        """Return the tensors that the best reading needs, and the module lacks."""
        return {} if self.best is None else self.best.reading.tensors

    def sentence(self) -> str:
        """Say what was measured, and which reading is better."""
        line = f"{self.acceptance:.1%} of {self.proposals} proposals right as declared"
        best = self.best
        if best is None:
            return f"{line}; no convention read otherwise gives more"
        name, value = best.reading.convention, best.reading.value
        return f"{line}; {name} read as {value}: {best.acceptance:.1%} against {best.declared:.1%}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "acceptance": self.acceptance,
            "acceptance_second": self.second,
            "proposals": self.proposals,
            "readings": [other.to_json() for other in self.others],
        }


def conventions_of(config: RecyclerConfig) -> dict[str, Any]:
    """Return a module's conventions as plain values."""
    return {name: getattr(config, name) for name in OF_THE_CONVENTIONS}


def settled(verdict: ConventionVerdict, where: str, *, accept: bool) -> MeasuredModule | None:
    """Return the module as the better reading has it, None where it is right as declared; `where` says what it is.

    Raises:
        InputError: another reading is better by more than noise, and not to `accept`, or one that cannot be expressed.
    """
    best = verdict.best
    if best is None:
        return None
    if not best.reading.expressible:
        raise InputError(f"{where}: {verdict.sentence()}; a module cannot be read so")
    if not accept:
        raise InputError(f"{where}: {verdict.sentence()}; take that with --accept-measured, or --no-check")
    return replace(verdict.module, config=best.reading.config)

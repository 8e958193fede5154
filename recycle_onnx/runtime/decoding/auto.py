"""The strategy `auto`: what to propose in each cycle, from what steps cost here and how often proposals were right."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal

from recycle_onnx.runtime.decoding.calibration import MachineCalibration
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import STEP_ROWS
from recycle_onnx.runtime.decoding.proposals import LookupProposer, ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Chooser
from recycle_onnx.runtime.settings import LONGEST_CHAINS

ProposerName = Literal["nothing", "module", "lookup", "constraint"]

LONGEST = LONGEST_CHAINS["auto"]
"""Most tokens of a chain: a later place is right only where all before it were, so it adds ever less."""
MEMORY = 0.95
"""What a cycle's outcome still counts for after the next one of its kind: half after 14 cycles, so that beliefs follow
a text from prose into code, and a single miss does not turn them."""
PRIOR = {"module": (1.5, 2.0), "lookup": (1.0, 2.0), "constraint": (1.9, 2.0)}
"""Accepted and tried proposals to start from: so few that the first cycles outweigh them."""
PLACES = {"module": LONGEST, "lookup": LONGEST, "constraint": STEP_ROWS - 1}
"""Most tokens of each proposer: a constraint is right wherever it leaves no choice."""
CALIBRATED = 8.0
"""Proposals that a calibration counts for: it was measured on other texts, so this text's own outcomes take over after
as many cycles."""
TRIALS = (1, 1, 0, 0, 1)
"""Chain lengths of the first cycles, from which the costs come. Each kind is tried twice or more, since a kind's first
step also allocates and is not counted."""
FIRST_PAUSE, LONGEST_PAUSE = 16, 256
"""Cycles without the module before it is asked again where it did not pay: doubled from the first to the longest, so
that a module which never pays costs a cycle in 256."""
MARGIN = 1.03
"""How much faster than the full model alone a proposal must promise to be: costs are medians of few steps, and a
smaller promise may be no more than their noise."""


class Costs:
    """Median seconds of the latest steps of each kind; a kind's first step also allocates, and is left out."""

    def __init__(self, calibration: MachineCalibration | None = None, *, one_run: bool = False) -> None:
        """Start from a calibration, if there is one: it counts as one step of each kind.

        `one_run`: a chain of the module takes one run, however long it is.
        """
        self._one_run = one_run
        known = _seconds(calibration.step_ms, one_run=one_run) if calibration else {}
        # A median of nine: no single slow step decides, and five new ones are enough to change it.
        self._samples = {kind: deque([seconds], maxlen=9) for kind, seconds in known.items()}
        self._medians = dict(known)
        self._seen: set[str] = set()  # kinds whose first step is past

    def add(self, kind: str, seconds: float) -> None:
        """Note how many seconds one step took."""
        if kind not in self._seen:
            self._seen.add(kind)
            return
        samples = self._samples.setdefault(kind, deque(maxlen=9))
        samples.append(seconds)
        self._medians[kind] = statistics.median(samples)

    def get(self, kind: str) -> float | None:
        """Return the median seconds, None before the second step."""
        return self._medians.get(kind)

    def full(self, tokens: int, after_module: bool = False) -> float:
        """Estimate the seconds of a full step on so many tokens; where none was measured, extrapolate carefully.

        On small models it costs more after the module's steps: they push the weights out of the processor's cache.
        """
        measured = self.get(f"full_{tokens}_module") if after_module else None
        measured = measured or self.get(f"full_{tokens}")
        if measured is not None:
            return measured
        one = self.get("full_1") or 0.0
        two = self.get("full_2") or 1.1 * one
        return two if tokens <= 2 else two + (tokens - 2) * max(two - one, 0.25 * one)

    def module(self, chain: int) -> float:
        """Estimate the seconds of the module's chain of so many tokens; where none was measured, of its single steps.

        Before the module's first step the answer is 0: it looks free, so it is tried, and then measured.
        """
        return self.get(f"module_{chain}") or (1 if self._one_run else chain) * (self.get("module_1") or 0.0)

    def to_json(self) -> dict[str, float]:
        """Return milliseconds by kind of step."""
        return {kind: 1e3 * seconds for kind, seconds in sorted(self._medians.items())}


def _seconds(step_ms: dict[str, float], *, one_run: bool) -> dict[str, float]:
    """Convert a calibration's milliseconds to seconds, and name the module's chains as `Costs` does."""
    known = {kind: 1e-3 * ms for kind, ms in step_ms.items() if kind.startswith("full")}
    if "recycle_1" in step_ms and "recycle_2" in step_ms:
        further = 0.0 if one_run else step_ms["recycle_1"]
        for chain in range(1, LONGEST + 1):
            known[f"module_{chain}"] = 1e-3 * (step_ms["recycle_2"] + (chain - 1) * further)
    return known


@dataclass
class Rates:
    """The share of a proposer's proposals that were right, by their place in the chain; the past fades."""

    accepted: list[float] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)

    @classmethod
    def prior(cls, proposer: str, calibration: MachineCalibration | None = None) -> Rates:
        """Return what is believed before anything was tried here."""
        accepted, tried = PRIOR[proposer]
        prior = cls([accepted] * PLACES[proposer], [tried] * PLACES[proposer])
        for place, rate in enumerate(calibration.acceptance.get(proposer, ())[:LONGEST] if calibration else ()):
            prior.accepted[place], prior.tried[place] = rate * CALIBRATED, CALIBRATED
        return prior

    def learn(self, proposed: int, accepted: int) -> None:
        """Note a cycle: what comes after the first wrong proposal was never tried."""
        for place in range(min(proposed, accepted + 1)):
            self.accepted[place] = MEMORY * self.accepted[place] + (place < accepted)
            self.tried[place] = MEMORY * self.tried[place] + 1

    def tokens(self, longest: int) -> list[float]:
        """Return the expected tokens of cycles that propose 1 … `longest` tokens, the full model's own included."""
        total = alive = 1.0
        expected = []
        for accepted, tried in zip(self.accepted[:longest], self.tried[:longest], strict=True):
            alive *= accepted / tried
            total += alive
            expected.append(total)
        return expected


def fastest(costs: Costs, rates: dict[str, Rates], longest: dict[ProposerName, int]) -> tuple[ProposerName, int]:
    """Choose the proposer and number of proposals that promise most tokens per second, up to `longest` of each.

    The choice is `nothing` where no proposer beats the full model alone by `MARGIN`, or its cost is not known yet.
    """
    alone = costs.get("full_1")
    if alone is None:
        return "nothing", 0
    best = MARGIN / alone
    choice: tuple[ProposerName, int] = ("nothing", 0)
    for proposer, most in longest.items():
        by_module = proposer == "module"
        for chain, tokens in enumerate(rates[proposer].tokens(most), start=1):
            speed = tokens / (costs.full(1 + chain, by_module) + (costs.module(chain) if by_module else 0.0))
            if speed > best:
                best, choice = speed, (proposer, chain)
    return choice


def first_choice(calibration: MachineCalibration, longest_chain: int | None = None) -> tuple[ProposerName, int, float]:
    """Return what a calibration makes `auto` start with: proposer, tokens it proposes, and the expected speed-up.

    `longest_chain` is the bundle's.
    """
    costs = Costs(calibration, one_run=longest_chain is not None)
    rates = {proposer: Rates.prior(proposer, calibration) for proposer in calibration.acceptance}
    most = LONGEST if longest_chain is None else min(LONGEST, longest_chain)
    longest: dict[ProposerName, int] = {"module": most} if "module" in rates else {}
    proposer, chain = fastest(costs, rates, longest)
    if chain == 0:
        return proposer, 0, 1.0
    seconds = costs.full(1 + chain, after_module=True) + costs.module(chain)
    return proposer, chain, rates[proposer].tokens(chain)[-1] * costs.full(1) / seconds


class AutoProposer:
    """A proposer that takes whatever promises most tokens per second.

    It chooses among a chain of the module, a lookup, forced tokens, and nothing.
    """

    def __init__(
        self,
        decoder: Decoder,
        sampling: Chooser,
        prompt: list[int],
        longest: int,
        module: ModuleProposer | None = None,
        calibration: MachineCalibration | None = None,
    ) -> None:
        """Start with the beliefs of `calibration`; without a `module` only lookups and forced tokens are proposed."""
        self.decoder, self.longest = decoder, longest
        self.sampling = sampling
        self.lookup = LookupProposer(prompt, sampling, self.longest)
        self.module = module
        self.costs = Costs(calibration, one_run=decoder.longest_chain < sys.maxsize)
        self.rates = {proposer: Rates.prior(proposer, calibration) for proposer in PRIOR}
        self.chosen: Counter[str] = Counter()
        self._trials = [] if calibration else [chain for chain in TRIALS if self.module or chain == 0]
        self._last: tuple[ProposerName, int] | None = None  # who proposed in the latest cycle, and how many tokens
        self._pause = self._wait = FIRST_PAUSE  # cycles between two questions to the module, and until the next
        self._expected: list[int] = []  # what a lookup said would come, and has not been refuted
        self._came = 0  # how many of them have come

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Propose at most `room` tokens, from whichever proposer is worth it."""
        self._learn(len(kept) - 1)
        self._watch_lookup(kept)
        looked_up = self.lookup.propose(kept, position, min(room, self.longest))
        forced = self.sampling.fast_forward(position)[: min(room, PLACES["constraint"])]
        proposer, chain = self._choose(len(looked_up), len(forced))
        proposals: list[int] = []
        if proposer == "module" and self.module is not None:
            proposals = self._ask_module(self.module, kept, position, min(room, chain))
        else:
            if self.module is not None:
                self.module.postpone(kept)
            if proposer in ("lookup", "constraint"):
                proposals = (looked_up if proposer == "lookup" else forced)[:chain]
        if not self._expected:
            self._expected, self._came = looked_up, 0
        self._last = (proposer, len(proposals))
        self.chosen[proposer if proposer != "module" else f"module_{chain}"] += 1
        return proposals

    def _ask_module(self, module: ModuleProposer, kept: list[int], position: int, chain: int) -> list[int]:
        # What waits since a pause is read in the same run, which then takes longer than the chain alone.
        caught_up = not self.decoder.waiting
        started = time.perf_counter()
        module.chain = chain
        proposals = module.propose(kept, position, chain)
        seconds = time.perf_counter() - started
        if caught_up and module.cycles > 1:  # the first one reads the prompt
            self.costs.add(f"module_{chain}", seconds)
        return proposals

    def _learn(self, accepted: int) -> None:
        if self._last is None:
            return
        proposer, proposed = self._last
        self.costs.add(f"full_{1 + proposed}" + "_module" * (proposer == "module"), self.decoder.full.seconds)
        # Lookups are judged by `_watch_lookup`, those that nobody proposed too.
        if proposer in ("module", "constraint") and proposed:
            self.rates[proposer].learn(proposed, accepted)

    def _watch_lookup(self, kept: list[int]) -> None:
        """Compare what was found with what came, whoever proposed: a lookup costs nothing to try."""
        for token in kept:
            if not self._expected:
                return
            right = token == self._expected[self._came]
            self._came += right
            if not right or self._came == len(self._expected):
                self.rates["lookup"].learn(len(self._expected), self._came)
                self._expected = []

    def _choose(self, looked_up: int, forced: int) -> tuple[ProposerName, int]:
        if self._trials:
            chain = self._trials.pop(0)
            return ("module", chain) if chain else ("nothing", 0)
        module = min(self.longest, self.decoder.longest_chain) if self.module else 0
        longest: dict[ProposerName, int] = {"constraint": forced, "lookup": looked_up, "module": module}
        choice = fastest(self.costs, self.rates, longest)
        if choice[0] == "module":
            self._pause = self._wait = FIRST_PAUSE
        return self._probe() if choice[0] == "nothing" else choice

    def _probe(self) -> tuple[ProposerName, int]:
        """Ask the module now and then, while nothing pays, whether the text has become easier."""
        self._wait -= 1
        if self.module is None or self._wait > 0:
            return "nothing", 0
        self._pause = self._wait = min(2 * self._pause, LONGEST_PAUSE)
        return "module", 1

    def report(self) -> dict[str, Any]:
        """Return how often each proposer was chosen, and why: step costs in milliseconds, and acceptance by place."""
        return {
            "chosen": dict(self.chosen),
            "step_ms": self.costs.to_json(),
            "acceptance": {
                proposer: [a / t for a, t in zip(rates.accepted, rates.tried, strict=True)]
                for proposer, rates in self.rates.items()
                if any(name.startswith(proposer) for name in self.chosen)
            },
        }

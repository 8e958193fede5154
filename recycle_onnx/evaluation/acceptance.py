"""How often the module's proposals are right where it counts: on the model's own text, by place in a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.proposals import ModuleProposer, Proposer

Report = Callable[[int, int, str], None]
OPENING = 16
"""Tokens of a document that the model is given to go on from."""


class Watched:
    """Counts how often another proposer's proposals were tried and right, by their place."""

    def __init__(self, inner: Proposer, longest: int) -> None:
        self.inner = inner
        self.tried, self.right = [0] * longest, [0] * longest
        self._proposed = 0

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """What the other one proposes."""
        accepted = len(kept) - 1
        for place in range(min(self._proposed, accepted + 1)):
            self.tried[place] += 1
            self.right[place] += place < accepted
        proposals = self.inner.propose(kept, position, room)
        self._proposed = len(proposals)
        return proposals


def rates(runs: Sequence[Watched]) -> list[float]:
    """By place, given that those before were right, as far as anything was tried there."""
    found: list[float] = []
    for place in range(len(runs[0].tried) if runs else 0):
        tried = sum(run.tried[place] for run in runs)
        if tried == 0:
            break
        found.append(sum(run.right[place] for run in runs) / tried)
    return found


@dataclass(frozen=True)
class Acceptance:
    """At one temperature (0 is greedy): `by_place` in chains of the given length, and tokens that a full run made.

    `proposals` is how many were tried at the first place.
    """

    temperature: float
    chain: int
    proposals: int
    by_place: list[float]
    tokens_per_full_run: float


def acceptance(
    model: RecycleModel,
    documents: Sequence[str],
    *,
    chain: int = 4,
    new_tokens: int = 64,
    temperature: float = 0.0,
    report: Report = lambda *_: None,
) -> Acceptance:
    """Continue the openings of `documents` and count."""
    runs, tokens, full_runs = [], 0, 0
    for index, document in enumerate(documents):
        report(index, len(documents), f"acceptance at temperature {temperature:g}")
        prompt = model.encode(document)[:OPENING]
        generation = model.stream(
            prompt, strategy="verify", max_new_tokens=new_tokens, temperature=temperature, seed=index
        )
        inner = ModuleProposer(generation.decoder, generation.sampling, chain, 0.0)
        generation.proposer = watched = Watched(inner, chain)
        for _ in generation:
            pass
        runs.append(watched)
        tokens += generation.result.stats.new_tokens - 1
        full_runs += generation.result.stats.full_runs - 1
    report(len(documents), len(documents), "acceptance")
    tried = sum(run.tried[0] for run in runs)
    return Acceptance(temperature, chain, tried, rates(runs), tokens / full_runs if full_runs else 0.0)

"""The strategies: in which order full steps and recycle steps run, and which recycled tokens stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.runtime.decoding.auto import AutoProposer
from recycle_onnx.runtime.decoding.calibration import MachineCalibration
from recycle_onnx.runtime.decoding.decoder import Decoder, Watch, nobody
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.decoding.proposals import ConstraintProposer, LookupProposer, ModuleProposer, Proposer
from recycle_onnx.runtime.decoding.sampling import Chooser, choose_if_allowed
from recycle_onnx.runtime.settings import check_plan

NEEDING_MODULE = ("alternate", "verify")
"""Those that cannot do without the module; `auto` can."""
DEFAULT_CHAIN = {"auto": 4, "verify": 1, "lookup": 4}
"""Tokens of a chain where nobody says: `auto` shortens it where that pays, `verify` takes what is asked for."""


@dataclass(frozen=True)
class Plan:
    """A strategy, the tokens it proposes in a cycle, and the probability that the module must give to each.

    `auto` starts from the calibration, if there is one, and leaves a module alone that was not trained.
    """

    strategy: str
    chain: int = 1
    min_confidence: float = 0.0
    calibration: MachineCalibration | None = None
    module_trained: bool = True

    @property
    def needs_module(self) -> bool:
        """Whether the module will ever be asked."""
        return self.strategy in NEEDING_MODULE or (self.strategy == "auto" and self.module_trained)

    @classmethod
    def make(
        cls,
        strategy: str,
        chain: int | None,
        min_confidence: float,
        calibration: MachineCalibration | None = None,
        module_trained: bool = True,
    ) -> Plan:
        """Fill in the strategy's own chain length.

        Raises:
            InputError: a chain length or confidence out of range, or where the strategy has none.
        """
        check_plan(strategy, chain, min_confidence)
        return cls(strategy, chain or DEFAULT_CHAIN.get(strategy, 1), min_confidence, calibration, module_trained)


class ChosenToken(NamedTuple):
    """A token that is final, whether the module chose it first, and the logits [V] that made it final.

    `logits` hold until the next choice is asked for; `vocabulary` [V] are their ids where they are the module's own.
    """

    id: int
    recycled: bool
    logits: Floats
    vocabulary: NDArray[np.int64] | None = None


@dataclass
class Counts:
    """The numbers of recycled tokens that were proposed, and of those that stayed."""

    proposed: int = 0
    accepted: int = 0


def full(
    decoder: Decoder, prompt: list[int], sampling: Chooser, limit: int, watch: Watch = nobody
) -> Iterator[ChosenToken]:
    """Decode by one full step per token, as the reference for the other strategies."""
    logits = decoder.prefill(prompt, limit, watch)
    position = len(prompt)
    for _ in range(limit - 1):
        token = sampling.choose(logits[-1], position)
        yield ChosenToken(token, False, logits[-1])
        logits = decoder.full_step([token], keep=1)
        position += 1
    yield ChosenToken(sampling.choose(logits[-1], position), False, logits[-1])


def alternate(
    decoder: Decoder, prompt: list[int], sampling: Chooser, limit: int, counts: Counts, watch: Watch = nobody
) -> Iterator[ChosenToken]:
    """Decode by the full model and the module in turns; every recycled token stays (RecycleGPT's decoding).

    The module misses its turn where it knows no token that processors allow.
    """
    logits = decoder.prefill(prompt, limit, watch)
    position, end = len(prompt), len(prompt) + limit
    pending: list[int] = []
    while True:
        token = sampling.choose(logits[-1], position)
        yield ChosenToken(token, False, logits[-1])
        if position + 1 == end:
            return
        # The module reads what followed each token of the last full step; the first time, the whole prompt.
        draft = decoder.recycle_step([*pending[1:], token]) if pending else decoder.start_recycling(token)
        pending, position = [token], position + 1
        recycled = choose_if_allowed(sampling, draft[-1], position, decoder.draft_ids)
        if recycled is not None:
            counts.proposed += 1
            counts.accepted += 1
            yield ChosenToken(recycled, True, draft[-1], decoder.draft_ids)
            pending, position = [token, recycled], position + 1
        if position == end:
            return
        # One row of logits: nobody asks what the full model would have said in place of the recycled token.
        logits = decoder.full_step(pending, keep=1)


def verify(
    decoder: Decoder,
    prompt: list[int],
    sampling: Chooser,
    limit: int,
    counts: Counts,
    proposer: Proposer,
    watch: Watch = nobody,
) -> Iterator[ChosenToken]:
    """Decode with proposals that stay where they equal the full model's own choice: the text is that of `full`.

    One full step reads the last token and the proposals; its row i says what follows pending[i].
    """
    logits = decoder.prefill(prompt, limit, watch)
    position, end = len(prompt), len(prompt) + limit
    proposals: list[int] = []
    while True:
        # 1. Keep proposals while the full model agrees; its choice after the last kept one comes for free.
        kept: list[int] = []
        while True:
            row = logits[len(kept)]
            token = sampling.choose(row, position)
            accepted = len(kept) < len(proposals) and token == proposals[len(kept)]
            kept.append(token)
            position += 1
            counts.accepted += accepted
            if not accepted:
                break
            yield ChosenToken(token, True, row)
        # 2. What the full model read beyond them is forgotten, and the free token streamed before anything else runs.
        decoder.keep(position - 1)
        yield ChosenToken(token, False, row)
        if position == end:
            return
        # 3. The tokens before the last one are proposed: the module reads the kept ones with their true hidden states.
        room = end - position - 1
        proposals = proposer.propose(kept, position, room) if room else []
        counts.proposed += len(proposals)
        # 4. The full model reads the last token and the proposals together.
        logits = decoder.full_step([token, *proposals], keep=1 + len(proposals))


def run(
    plan: Plan,
    decoder: Decoder,
    prompt: list[int],
    sampling: Chooser,
    limit: int,
    counts: Counts,
    proposer: Proposer | None = None,
    watch: Watch = nobody,
) -> Iterator[ChosenToken]:
    """Yield `limit` tokens after `prompt` as they become final; the consumer may stop at any of them.

    `proposer` takes the place of the strategy's own; `watch` is told how far the prompt is read.
    """
    if plan.strategy == "alternate":
        return alternate(decoder, prompt, sampling, limit, counts, watch)
    proposer = proposer or make_proposer(plan, decoder, prompt, sampling)
    if proposer is None:
        return full(decoder, prompt, sampling, limit, watch)
    return verify(decoder, prompt, sampling, limit, counts, proposer, watch)


def make_proposer(plan: Plan, decoder: Decoder, prompt: list[int], sampling: Chooser) -> Proposer | None:
    """Make who proposes under `verify`, `lookup` and `auto`; None under the others."""
    if plan.strategy not in DEFAULT_CHAIN:
        return None
    if plan.strategy == "auto":
        module = ModuleProposer(decoder, sampling, 1, plan.min_confidence)
        asked = module if decoder.recycler and plan.needs_module else None
        return AutoProposer(decoder, sampling, prompt, plan.chain, asked, plan.calibration)
    if plan.strategy == "verify":
        return ConstraintProposer(ModuleProposer(decoder, sampling, plan.chain, plan.min_confidence), sampling)
    return ConstraintProposer(LookupProposer(prompt, sampling, plan.chain), sampling)

"""Measures what `auto` would otherwise find out in every text: step costs, and acceptance on prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from recycle_onnx.bench.steps import MOST_TOKENS, StepTimer
from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.acceptance import continued, rates
from recycle_onnx.evaluation.openings import own_text, own_texts
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.decoding.auto import LONGEST
from recycle_onnx.runtime.decoding.calibration import MachineCalibration
from recycle_onnx.runtime.model import Model

ROUNDS = 20
"""Rounds of every kind of step, of which the median counts: one interruption by another process changes nothing."""


def calibrate(
    model: Model,
    prompts: Sequence[list[int]] = (),
    *,
    context: int = 128,
    new_tokens: int = 64,
    report: Progress = silent,
) -> MachineCalibration:
    """Time steps after `context` tokens, and count acceptance in `new_tokens` after each prompt, chosen greedily.

    Prompts are token ids. Without prompts, texts that the model itself says when it is sampled take their place.

    Raises:
        InputError: a prompt or context that leaves no room.
    """
    room = model.bundle.manifest.context_length - MOST_TOKENS
    if not 2 <= context <= room:
        raise InputError(f"context is {context}; expected 2 to {room}")
    texts = list(prompts) or own_texts(model)
    proposers: tuple[Literal["module", "lookup"], ...] = ("module", "lookup") if model.module_trained else ("lookup",)
    total = ROUNDS + len(texts) * len(proposers)
    timer = StepTimer(model, own_text(model, context))
    for index in range(ROUNDS):
        report(index, total, "timing steps")
        timer.round()
    acceptance: dict[str, list[float]] = {}
    for count, proposer in enumerate(proposers):
        tallies = []
        for text in texts:
            report(ROUNDS + count * len(texts), total, f"counting what the {proposer} gets right")
            tallies.append(continued(model, text, proposer, chain=LONGEST, new_tokens=new_tokens).tally)
        acceptance[proposer] = rates(tallies)
    report(total, total, "done")
    return MachineCalibration.of_this_machine(timer.medians(), acceptance)

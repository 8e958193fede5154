"""What is minimised, and what is reported.

Row p of the full model predicts token p+1; row p of the module, given token p+1, predicts token p+2. In a chain the
module goes on from its own state and the next token: step k predicts token p+1+k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recycle_onnx.training.caches import Unrolled
from recycle_onnx.training.model import Output, RecycleGPT

DECAY = 0.8
"""What a step of the chain weighs against the one before it."""


class Losses(NamedTuple):
    """Mean nats a token of both halves, and how often their greedy choices agree by place in the chain [depth].

    (The acceptance rate, where the tokens before are those of the text.)
    """

    next_token: Tensor
    recycle: Tensor
    acceptance: Tensor


def joint(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """Both halves against the text `ids` [B, S] (RecycleGPT, section on training)."""
    full = model.full(ids[:, :-1])
    steps = _chain(model, ids, full, depth)
    recycle = [_cross_entropy(step.logits, ids[:, 1 + place :]) for place, step in enumerate(steps, start=1)]
    return Losses(_cross_entropy(full.logits, ids[:, 1:]), _weighted(recycle), _acceptance(steps, full))


def frozen_base(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """The module against the base's own next-token distribution (soft cross-entropy); the base gets no gradient."""
    with torch.no_grad():
        full = model.full(ids[:, :-1])
    steps = _chain(model, ids, full, depth)
    recycle = [_soft(step.logits, full.logits[:, place:]) for place, step in enumerate(steps, start=1)]
    return Losses(_cross_entropy(full.logits, ids[:, 1:]), _weighted(recycle), _acceptance(steps, full))


def _chain(model: RecycleGPT, ids: Tensor, full: Output, depth: int) -> list[Output]:
    """The module's steps; row r of step k predicts what row r + k of the full model predicts."""
    cache = [Unrolled() for _ in model.recycler.layers]
    states, steps = full.hidden_states[:, :-1], []
    for place in range(depth):
        steps.append(model.recycle(ids[:, 1 + place : -1], states, cache))
        states = steps[-1].hidden_states[:, :-1]
    return steps


def _weighted(losses: list[Tensor]) -> Tensor:
    weights = [DECAY**place for place in range(len(losses))]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    assert isinstance(total, Tensor)
    return total / sum(weights)


def _soft(logits: Tensor, target: Tensor) -> Tensor:
    return -(target.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _acceptance(steps: list[Output], full: Output) -> Tensor:
    rates = [
        (step.logits.detach().argmax(-1) == full.logits.detach()[:, place:].argmax(-1)).float().mean()
        for place, step in enumerate(steps, start=1)
    ]
    return torch.stack(rates)

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
OUTSIDE = -100
"""In the place of tokens that a draft vocabulary lacks."""


class Losses(NamedTuple):
    """Mean nats a token of both halves, and how often their greedy choices agree by place in the chain [depth].

    (The acceptance rate, where the tokens before are those of the text.)
    """

    next_token: Tensor
    recycle: Tensor
    acceptance: Tensor


def joint(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """Both halves against the text `ids` [B, S] (RecycleGPT, section on training).

    Tokens outside a draft vocabulary are left out of the module's loss.
    """
    full = model.full(ids[:, :-1])
    steps = _chain(model, ids, full, depth)
    targets = _draft_targets(model, ids)
    recycle = [_cross_entropy(step.logits, targets[:, 1 + place :]) for place, step in enumerate(steps, start=1)]
    return Losses(_cross_entropy(full.logits, ids[:, 1:]), _weighted(recycle), _acceptance(model, steps, full))


def frozen_base(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """The module against the base's own next-token distribution (soft cross-entropy); the base gets no gradient.

    With a draft vocabulary that is the base's distribution over its tokens alone.
    """
    with torch.no_grad():
        full = model.full(ids[:, :-1])
    steps = _chain(model, ids, full, depth)
    target = full.logits if model.draft_ids is None else full.logits[..., model.draft_ids]
    recycle = [_soft(step.logits, target[:, place:]) for place, step in enumerate(steps, start=1)]
    return Losses(_cross_entropy(full.logits, ids[:, 1:]), _weighted(recycle), _acceptance(model, steps, full))


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


def _draft_targets(model: RecycleGPT, ids: Tensor) -> Tensor:
    """Where the tokens `ids` stand among the module's logits; `OUTSIDE` for those it has none for."""
    if model.draft_ids is None:
        return ids
    places = torch.full((model.full.config.vocab_size,), OUTSIDE, device=ids.device)
    places[model.draft_ids] = torch.arange(len(model.draft_ids), device=ids.device)
    return places[ids]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    total = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=OUTSIDE, reduction="sum")
    return total / (targets != OUTSIDE).sum().clamp(min=1)


def _acceptance(model: RecycleGPT, steps: list[Output], full: Output) -> Tensor:
    """How often the module names the base's best token of all, also where its draft vocabulary lacks that."""
    best = full.logits.detach().argmax(-1)
    rates = [(model.chosen(step) == best[:, place:]).float().mean() for place, step in enumerate(steps, start=1)]
    return torch.stack(rates)

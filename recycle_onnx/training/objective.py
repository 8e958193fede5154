"""What is minimised, and what is reported.

Row p of the full model predicts token p+1; row p of the module, given token p+1, predicts token p+2. In a chain the
module goes on from its own state and the next token: step k predicts token p+1+k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recycle_onnx.training.caches import Unrolled
from recycle_onnx.training.model import Output, RecycleGPT
from recycle_onnx.training.options import Precision
from recycle_onnx.training.precision import computing

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

    def row(self) -> Tensor:
        """All of them as one vector without a gradient, to be averaged."""
        return torch.cat([self.next_token[None], self.recycle[None], self.acceptance]).detach()

    @classmethod
    def from_row(cls, row: Tensor) -> Losses:
        """Undo `row`."""
        return cls(row[0], row[1], row[2:])


class Objective(nn.Module):
    """The losses of a batch as one module, as data-parallel training wants it."""

    def __init__(self, model: RecycleGPT, depth: int, precision: Precision, recycle_weight: float | None) -> None:
        """`recycle_weight` is for joint training; None freezes the base."""
        super().__init__()
        self.model, self.depth, self.recycle_weight = model, depth, recycle_weight
        self._precision = precision
        model.full.requires_grad_(recycle_weight is not None)

    def forward(self, ids: Tensor) -> Losses:
        """Losses of the windows `ids` [B, S]."""
        losses = frozen_base if self.recycle_weight is None else joint
        with computing(self.model.full, ids.device, self._precision):
            return losses(self.model, ids, self.depth)

    def total(self, losses: Losses) -> Tensor:
        """What is minimised."""
        if self.recycle_weight is None:
            return losses.recycle
        return losses.next_token + self.recycle_weight * losses.recycle


def joint(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """Both halves against the text `ids` [B, S] (RecycleGPT, section on training).

    Tokens outside a draft vocabulary are left out of the module's loss.
    """
    full = model.full(ids[:, :-1])
    steps = _chain(model, ids, full, depth)
    targets = _draft_targets(model, ids)
    recycle = [_lean(_cross_entropy, step.logits, targets[:, 1 + place :]) for place, step in enumerate(steps, start=1)]
    next_token = _lean(_cross_entropy, full.logits, ids[:, 1:])
    return Losses(next_token, _weighted(recycle), _acceptance(model, steps, full))


def frozen_base(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """The module against the base's own next-token distribution (soft cross-entropy); the base gets no gradient.

    With a draft vocabulary that is the base's distribution over its tokens alone.
    """
    with torch.no_grad():
        full = model.full(ids[:, :-1])
    steps = _chain(model, ids, full, depth)
    target = full.logits if model.draft_ids is None else full.logits[..., model.draft_ids]
    recycle = [_lean(_soft, step.logits, target[:, place:]) for place, step in enumerate(steps, start=1)]
    next_token = _lean(_cross_entropy, full.logits, ids[:, 1:])
    return Losses(next_token, _weighted(recycle), _acceptance(model, steps, full))


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


def _lean(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """`loss` in float32. Its probabilities, several times the logits, are made again for the gradient, not kept."""

    def run(logits: Tensor, target: Tensor) -> Tensor:
        return loss(logits.float(), target.float() if target.is_floating_point() else target)

    result: Tensor = checkpoint(run, logits, target, use_reentrant=False)
    return result


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

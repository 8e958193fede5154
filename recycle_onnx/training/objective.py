"""What is minimised, and what is reported.

Row p of the full model predicts token p+1; row p of the module, given token p+1, predicts token p+2. In a chain the
module goes on from its own state and the next token: step k predicts token p+1+k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recycle_onnx.training.caches import Unrolled
from recycle_onnx.training.data import Batch
from recycle_onnx.training.head_loss import head_loss
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import Precision
from recycle_onnx.training.precision import computing
from recycle_onnx.training.targets import OUTSIDE, Targets

DECAY = 0.8
"""What a step of the chain weighs against the one before it."""


class Losses(NamedTuple):
    """The mean nats a token of both halves, and the agreement of their greedy choices by place in the chain [depth].

    (The acceptance rate, where the tokens before are those of the text.)
    """

    next_token: Tensor
    recycle: Tensor
    acceptance: Tensor

    def row(self) -> Tensor:
        """Return all losses as one vector without a gradient, to be averaged."""
        return torch.cat([self.next_token[None], self.recycle[None], self.acceptance]).detach()

    @classmethod
    def from_row(cls, row: Tensor) -> Losses:
        """Make losses of a vector that `row` gave."""
        return cls(row[0], row[1], row[2:])


class Objective(nn.Module):
    """The losses of a batch as one module, as data-parallel training wants it."""

    def __init__(
        self, model: RecycleGPT, depth: int, precision: Precision, recycle_weight: float | None, overlap: float = 0.0
    ) -> None:
        """Wrap a model; `recycle_weight` is for joint training, and None freezes the base.

        `overlap` is explained at `head_loss`.
        """
        super().__init__()
        self.model, self.depth, self.recycle_weight, self.overlap = model, depth, recycle_weight, overlap
        self._precision = precision
        model.full.requires_grad_(recycle_weight is not None)

    def forward(self, batch: Batch) -> Losses:
        """Compute the losses of windows of text."""
        with computing(self.model.full, batch.ids.device, self._precision):
            if batch.targets is None:
                return joint(self.model, batch.ids, self.depth)
            return frozen_base(self.model, batch.ids, batch.targets, self.depth, self.overlap)

    def total(self, losses: Losses) -> Tensor:
        """Return the sum that is minimised."""
        if self.recycle_weight is None:
            return losses.recycle
        return losses.next_token + self.recycle_weight * losses.recycle


def joint(model: RecycleGPT, ids: Tensor, depth: int = 1) -> Losses:
    """Compute the losses of both halves against the text `ids` [B, S] (RecycleGPT, section on training).

    Tokens outside a draft vocabulary are left out of the module's loss.
    """
    full = model.full(ids[:, :-1])
    best = full.logits.detach().argmax(-1)
    places = _draft_places(model)
    targets = ids if places is None else places[ids]
    losses, rates = [], []
    for place, states in enumerate(_chain(model, ids[:, :-1], full.hidden_states, depth), start=1):
        logits = model.module_logits(states, place=place - 1)
        losses.append(_lean_cross_entropy(logits, targets[:, 1 + place :]))
        rates.append(_agreement(model, logits.argmax(-1), best[:, place:]))
    return Losses(_lean_cross_entropy(full.logits, ids[:, 1:]), _weighted(losses), torch.stack(rates))


def frozen_base(model: RecycleGPT, ids: Tensor, targets: Targets, depth: int = 1, overlap: float = 0.0) -> Losses:
    """Compute the module's losses against the base's own next-token distribution on the text `ids` [B, S].

    With a draft vocabulary that is the base's distribution over its tokens alone.
    """
    target_ids, probabilities = targets.of_draft(_draft_places(model))
    losses, rates = [], []
    for place, states in enumerate(_chain(model, ids, targets.states, depth), start=1):
        head, scale, cap = model.module_head(place - 1)
        loss = head_loss(
            (states * scale).flatten(0, 1),
            head,
            target_ids[:, place:].flatten(0, 1),
            probabilities[:, place:].flatten(0, 1),
            overlap=overlap,
            cap=cap,
        )
        losses.append(loss.nats)
        rates.append(_agreement(model, loss.best, targets.ids[:, place:, 0].flatten()))
    return Losses(targets.nats[:, :-1].mean(), _weighted(losses), torch.stack(rates))


def _chain(model: RecycleGPT, ids: Tensor, states: Tensor, depth: int) -> list[Tensor]:
    """Run the module's steps; return their states [B, rows, H] for the LM head.

    `states` [B, S, n·H] are the base's for the tokens `ids` [B, S]. Row r of step k predicts what row r + k of the
    full model predicts.
    """
    cache = [Unrolled() for _ in model.recycler.layers]
    steps, states = [], states[:, :-1]
    for place in range(depth):
        step, own = model.recycled_states(ids[:, 1 + place :], states, cache, place)
        steps.append(step)
        states = own[:, :-1]
    return steps


def _weighted(losses: list[Tensor]) -> Tensor:
    weights = [DECAY**place for place in range(len(losses))]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    assert isinstance(total, Tensor)
    return total / sum(weights)


def _lean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute cross-entropy in float32; its probabilities are made again for the gradient, not kept.

    They take several times the memory of the logits.
    """

    def run(logits: Tensor, targets: Tensor) -> Tensor:
        total = functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=OUTSIDE, reduction="sum"
        )
        return total / (targets != OUTSIDE).sum().clamp(min=1)

    result: Tensor = checkpoint(run, logits, targets, use_reentrant=False)
    return result


def _draft_places(model: RecycleGPT) -> Tensor | None:
    """Return where each token stands among the module's logits [V], `OUTSIDE` for tokens it has none for."""
    if model.draft_ids is None:
        return None
    places = torch.full((model.full.config.vocab_size,), OUTSIDE, device=model.draft_ids.device)
    places[model.draft_ids] = torch.arange(len(model.draft_ids), device=places.device)
    return places


def _agreement(model: RecycleGPT, chosen: Tensor, best: Tensor) -> Tensor:
    """Return how often the module names the base's best token, also where its draft vocabulary lacks that."""
    tokens = chosen if model.draft_ids is None else model.draft_ids[chosen]
    return (tokens == best).float().mean()

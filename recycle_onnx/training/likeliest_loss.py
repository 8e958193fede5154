"""How far a model's distribution lies from another one, of which the likeliest tokens are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recycle_onnx.training.head_loss import mean_by_rows

ROWS = 256
"""Rows of logits that exist at once."""
SMALLEST = 1e-9
"""Of what all tokens but the likeliest ones have together."""


def divergence(
    states: Tensor, head: Tensor, ids: Tensor, log_probabilities: Tensor, *, cap: float | None = None
) -> Tensor:
    """Compute the mean Kullback-Leibler divergence of `states` [T, H] behind the LM head [V, H] from a target.

    It is in nats a row.

    The target's likeliest tokens are `ids` [T, K], their `log_probabilities` [T, K]; all others count as one more
    token. `cap` bounds the logits: cap · tanh(logit / cap) (arXiv 2408.00118). The head gets no gradient.
    """
    value: Tensor = _Divergence.apply(states, head, ids, log_probabilities, cap)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    """A divergence that computes its gradient along with its value, so that no logits wait for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, ids: Tensor, log_probabilities: Tensor, cap: float | None
    ) -> Tensor:
        def loss(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            return _of_logits(logits, ids[part].long(), log_probabilities[part].float())

        return mean_by_rows(ctx, states, head, cap, ROWS, loss)

    @staticmethod
    def backward(ctx: Any, nats: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return nats * gradient, None, None, None, None


def _of_logits(logits: Tensor, ids: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nats of all rows together, and their gradient with respect to the logits [rows, V]."""
    probabilities = target.exp()
    rest = (1 - probabilities.sum(-1)).clamp(min=SMALLEST)
    q = logits.softmax(-1)
    known = q.gather(-1, ids)
    left = (1 - known.sum(-1)).clamp(min=SMALLEST)
    nats = (probabilities * (target - known.clamp(min=SMALLEST**2).log())).sum() + (rest * (rest / left).log()).sum()
    gradient = q * (1 - rest / left)[:, None]
    return nats, gradient.scatter_(-1, ids, known - probabilities)

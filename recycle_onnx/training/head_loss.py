"""The module's loss behind the frozen LM head, a few rows at a time: probabilities are never kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 512
"""Rows of logits that exist at once: with 8192 draft rows they stay in a processor's cache, 15 % faster than all."""


RowsLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Gives, for logits [rows, V] of a part of the states, their nats together, and the gradient of these [rows, V]."""


class HeadLoss(NamedTuple):
    """The mean nats a row that are minimised, and the likeliest draft row [T] of each."""

    nats: Tensor
    best: Tensor


def head_loss(
    states: Tensor, head: Tensor, ids: Tensor, probabilities: Tensor, *, overlap: float, cap: float | None
) -> HeadLoss:
    """Compute the soft cross-entropy of `states` [T, H] behind the LM head [V, H] against likeliest tokens.

    The target gives `probabilities` [T, K] to the rows `ids` [T, K] of the head; the cross-entropy takes them as all
    there is. With a weight `overlap` the loss also counts what a sampled proposal is refused, 1 - sum(min(p, q))
    (arXiv 2602.23881). `cap` bounds the logits: cap · tanh(logit / cap) (arXiv 2408.00118). The head gets no gradient.
    """
    nats, best = _HeadLoss.apply(states, head, ids, probabilities, overlap, cap)  # type: ignore[no-untyped-call]
    return HeadLoss(nats, best)


def mean_by_rows(ctx: Any, states: Tensor, head: Tensor, cap: float | None, rows: int, loss: RowsLoss) -> Tensor:
    """Compute the mean of a loss over `states` [T, H] behind the LM head [V, H], `rows` at a time.

    The gradient with respect to the states is computed along with it, and saved in `ctx` for the backward pass.
    """
    total, gradients = torch.zeros((), device=states.device), []
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        logits = (states[part].to(head.dtype) @ head.T).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        nats, gradient = loss(logits, part)
        total += nats
        # Held-out text is measured without a gradient.
        if ctx.needs_input_grad[0]:
            if cap is not None:
                gradient *= 1 - (logits / cap) ** 2
            gradients.append((gradient.to(head.dtype) @ head).to(states.dtype))
    if gradients:
        ctx.save_for_backward(torch.cat(gradients) / len(states))
    return total / len(states)


class _HeadLoss(torch.autograd.Function):
    """A loss that computes its gradient along with its value, so that no logits wait for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, ids: Tensor, probabilities: Tensor, overlap: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        # Under autocast the products choose their type themselves.
        if not torch.is_autocast_enabled(states.device.type):
            head = head.to(states.dtype)
        bests: list[Tensor] = []

        def loss(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            bests.append(logits.argmax(-1))
            return _loss_and_gradient(logits, ids[part].long(), probabilities[part].float(), overlap)

        nats = mean_by_rows(ctx, states, head, cap, ROWS, loss)
        best = torch.cat(bests)
        ctx.mark_non_differentiable(best)
        return nats, best

    @staticmethod
    def backward(ctx: Any, nats: Tensor, _best: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return nats * gradient, None, None, None, None, None


def _loss_and_gradient(logits: Tensor, ids: Tensor, target: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
    """Return the nats of all rows together, and their gradient with respect to the logits [rows, V]."""
    share = target / target.sum(-1, keepdim=True).clamp(min=1e-30)
    q = logits.softmax(-1)
    known = q.gather(-1, ids)
    nats = -(share * known.clamp(min=1e-30).log()).sum()
    if overlap:
        lacking = torch.where(known < target, known, 0)  # where a larger q would be accepted more often
        nats = nats + overlap * (1 - torch.minimum(known, target).sum(-1)).sum()
        return nats, (q * (1 + overlap * lacking.sum(-1, keepdim=True))).scatter_add_(
            -1, ids, -share - overlap * lacking
        )
    return nats, q.scatter_add_(-1, ids, -share)

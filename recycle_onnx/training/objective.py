"""What is minimised, and what is reported.

Row p of the full model predicts token p+1; row p of the module, given token p+1, predicts token p+2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recycle_onnx.training.model import RecycleGPT


class Losses(NamedTuple):
    """Mean nats a token of both halves, and how often their greedy choices agree (the acceptance rate)."""

    next_token: Tensor
    recycle: Tensor
    acceptance: Tensor


def joint(model: RecycleGPT, ids: Tensor) -> Losses:
    """Both halves against the text `ids` [B, S] (RecycleGPT, section on training)."""
    full = model.full(ids[:, :-1])
    module = model.recycle(ids[:, 1:-1], full.hidden_states[:, :-1])
    return Losses(
        _cross_entropy(full.logits, ids[:, 1:]),
        _cross_entropy(module.logits, ids[:, 2:]),
        _agreement(module.logits, full.logits[:, 1:]),
    )


def frozen_base(model: RecycleGPT, ids: Tensor) -> Losses:
    """The module against the base's own next-token distribution (soft cross-entropy); the base gets no gradient."""
    with torch.no_grad():
        full = model.full(ids[:, :-1])
    module = model.recycle(ids[:, 1:-1], full.hidden_states[:, :-1])
    target = full.logits[:, 1:]
    soft = -(target.softmax(-1) * module.logits.log_softmax(-1)).sum(-1).mean()
    return Losses(_cross_entropy(full.logits, ids[:, 1:]), soft, _agreement(module.logits, target))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _agreement(left: Tensor, right: Tensor) -> Tensor:
    return (left.detach().argmax(-1) == right.detach().argmax(-1)).float().mean()

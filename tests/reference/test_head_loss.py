"""The module's loss and its gradient are those of plain torch, which keeps all probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recycle_onnx.training import head_loss
from recycle_onnx.training.head_loss import HeadLoss

ROWS, HIDDEN, VOCABULARY, KEPT = 150, 16, 64, 8


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, generator=generator, requires_grad=True)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    ids = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:KEPT] for _ in range(ROWS)])
    return states, head, ids, 0.8 * torch.rand(ROWS, KEPT, generator=generator).softmax(-1)


def plain(
    states: Tensor, head: Tensor, ids: Tensor, probabilities: Tensor, overlap: float, cap: float | None
) -> Tensor:
    logits = states @ head.T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    logs = logits.log_softmax(-1).gather(-1, ids)
    share = probabilities / probabilities.sum(-1, keepdim=True)
    refused = 1 - torch.minimum(logs.exp(), probabilities).sum(-1)
    return (-(share * logs).sum(-1) + overlap * refused).mean()


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("overlap", [0.0, 0.7])
def test_loss_and_gradient_are_those_of_all_probabilities(
    overlap: float, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "ROWS", 64)  # the last piece is a shorter one
    states, head, ids, probabilities = example()
    loss: HeadLoss = head_loss.head_loss(states, head, ids, probabilities, overlap=overlap, cap=cap)
    (ours,) = torch.autograd.grad(3 * loss.nats, states)
    expected = plain(states, head, ids, probabilities, overlap, cap)
    (theirs,) = torch.autograd.grad(3 * expected, states)
    torch.testing.assert_close(loss.nats, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert torch.equal(loss.best, (states @ head.T).argmax(-1))


def test_tokens_without_probability_change_nothing() -> None:
    states, head, ids, probabilities = example()
    padded = torch.cat([ids, torch.zeros_like(ids)], dim=1)
    with_nothing = torch.cat([probabilities, torch.zeros_like(probabilities)], dim=1)
    for overlap in (0.0, 0.7):
        short = head_loss.head_loss(states, head, ids, probabilities, overlap=overlap, cap=None)
        long = head_loss.head_loss(states, head, padded, with_nothing, overlap=overlap, cap=None)
        torch.testing.assert_close(long.nats, short.nats)


def test_a_row_whose_tokens_the_module_does_not_know_teaches_nothing() -> None:
    states, head, ids, probabilities = example()
    loss = head_loss.head_loss(states, head, ids, torch.zeros_like(probabilities), overlap=0.0, cap=None)
    assert loss.nats.item() == 0

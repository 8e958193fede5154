"""One optimiser step on a global batch, which processes and parts of a process share."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from recycle_onnx.errors import RecycleError
from recycle_onnx.training.objective import Losses, Objective
from recycle_onnx.training.setup import Setup


class Stepper:
    """The objective and the optimiser; every process has its own, and all hold the same weights."""

    def __init__(self, setup: Setup) -> None:
        options = setup.options
        weight = options.recycle_weight if options.joint else None
        self._options, self._processes = options, setup.processes
        self._objective = Objective(setup.model, options.depth, options.precision, weight)
        self._parallel = setup.processes.prepare(self._objective)
        self.trained = {name: p for name, p in setup.model.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(list(self.trained.values()), options.weight_decay)
        self.peak = options.learning_rate or 1e-3 * math.sqrt(256 / setup.checkpoint.base.hidden_size)

    def step(self, number: int, batch: Tensor, rate: float) -> Losses:
        """Learn from the windows `batch` [B, S], the same in every process; give their mean losses.

        Raises:
            RecycleError: the loss is not finite; the weights are those of the step before.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(self._processes.share(batch, self._options.gradient_accumulation))
        total = self._objective.total(losses)
        if not torch.isfinite(total):
            raise RecycleError(
                f"the loss became {total.item()} in step {number}; what was saved before is kept: "
                "train with a lower --lr"
            )
        nn.utils.clip_grad_norm_(self.trained.values(), self._options.clip)
        self.optimizer.step()
        return losses

    def _backward(self, parts: list[Tensor]) -> Losses:
        """Mean losses over all parts of all processes, and their gradients."""
        rows = []
        for index, part in enumerate(parts, start=1):
            with nullcontext() if index == len(parts) else self._processes.apart(self._parallel):
                losses = self._parallel(part)
                (self._objective.total(losses) / len(parts)).backward()  # type: ignore[no-untyped-call]
            rows.append(losses.row())
        return Losses.from_row(self._processes.mean(torch.stack(rows).mean(0)))

    def kept(self, part: Tensor) -> int:
        """Bytes that the windows `part` [B, S] keep for their gradient, weights apart."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._objective.parameters()}
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = self._objective(part)  # alive while it is counted: no address is used twice
        del losses
        return sum(found.values())

    @torch.no_grad()
    def measure(self, windows: Tensor) -> Losses:
        """Mean losses of the windows [N, S], shared out to the processes."""
        own = windows[self._processes.index :: self._processes.count].to(self._processes.device)
        size = self._options.batch_size // (self._processes.count * self._options.gradient_accumulation)
        total = torch.zeros(2 + self._options.depth, device=self._processes.device)
        for part in torch.split(own, size):
            total += self._objective(part).row() * len(part)
        return Losses.from_row(self._processes.total(total) / len(windows))


def _optimizer(trained: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed."""
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))

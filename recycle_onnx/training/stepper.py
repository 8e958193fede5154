"""One optimiser step on a global batch, which processes and parts of a process share."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recycle_onnx.errors import RecycleError
from recycle_onnx.training.objective import Losses, Objective
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.setup import Setup


class Stepper:
    """The objective and the optimiser; every process has its own, and all hold the same weights."""

    def __init__(self, setup: Setup) -> None:
        options = setup.options
        weight = options.recycle_weight if options.joint else None
        self._options, self._processes = options, setup.processes
        self._train, self._held_out = setup.train, setup.held_out
        self._objective = Objective(setup.model, options.depth, setup.precision, weight, options.overlap)
        self._parallel = setup.processes.prepare(self._objective)
        self.trained = {name: p for name, p in setup.model.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(list(self.trained.values()), options)
        self.peak = options.peak(setup.checkpoint.base.hidden_size)

    def step(self, number: int, windows: list[int], rate: float) -> Losses:
        """Learn from the training windows with these numbers, the same in every process; give their mean losses.

        Raises:
            RecycleError: the loss is not finite; the weights are those of the step before.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(self._processes.share(windows, self._options.gradient_accumulation))
        total = self._objective.total(losses)
        # Before the weights change: a step with such a gradient would spoil what was learnt.
        if not torch.isfinite(total):
            raise RecycleError(
                f"the loss became {total.item()} in step {number}; what was saved before is kept: "
                "train with a lower --lr"
            )
        nn.utils.clip_grad_norm_(self.trained.values(), self._options.clip)
        self.optimizer.step()
        return losses

    def _backward(self, parts: list[list[int]]) -> Losses:
        """Compute the mean losses over all parts of all processes, and their gradients."""
        rows = []
        for index, numbers in enumerate(parts, start=1):
            part = self._train.batch(numbers, self._processes.device)
            # Gradients are exchanged once a step, with the last part; before that each process adds up its own.
            with nullcontext() if index == len(parts) else self._processes.apart(self._parallel):
                losses = self._parallel(part)
                (self._objective.total(losses) / len(parts)).backward()  # type: ignore[no-untyped-call]
            rows.append(losses.row())
        return Losses.from_row(self._processes.mean(torch.stack(rows).mean(0)))

    @property
    def moments(self) -> int:
        """Bytes that the optimizer keeps between steps: AdamW two numbers for each that is trained, Muon one."""
        muon = self._options.chosen_optimizer == "muon"
        return sum(p.nbytes * (1 if muon and p.dim() > 1 else 2) for p in self.trained.values())

    def kept(self, windows: list[int]) -> int:
        """Count the bytes that the training windows with these numbers keep for their gradient, weights apart."""
        part = self._train.batch(windows, self._processes.device)
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._objective.parameters()}
        bytes_by_address: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                bytes_by_address[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = self._objective(part)  # alive while it is counted: no address is used twice
        del losses
        return sum(bytes_by_address.values())

    @torch.no_grad()
    def measure(self) -> Losses:
        """Measure the mean losses of the held-out windows, shared out to the processes."""
        own = range(len(self._held_out))[self._processes.index :: self._processes.count]
        size = self._options.batch_size // (self._processes.count * self._options.gradient_accumulation)
        total = torch.zeros(2 + self._options.depth, device=self._processes.device)
        for start in range(0, len(own), size):
            part = own[start : start + size]
            total += self._objective(self._held_out.batch(part, self._processes.device)).row() * len(part)
        return Losses.from_row(self._processes.total(total) / len(self._held_out))


def _optimizer(trained: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Make AdamW, or Muon for matrices (arXiv 2502.16982) and AdamW for the rest; norms are not decayed."""
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() == 1]
    if options.chosen_optimizer == "muon":
        # Matched to AdamW, so that one learning rate means the same for both.
        muon = torch.optim.Muon(matrices, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw")
        # A module may have no vectors: Medusa's blocks need no bias.
        return Together(muon, *([torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)] if others else []))
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


class Together(torch.optim.Optimizer):
    """Two optimisers, each with parameters of its own, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """The state that each optimiser keeps, by parameter."""
        return {parameter: kept for part in self.parts for parameter, kept in part.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for number, part in enumerate(self.parts):
            part.load_state_dict(state_dict[str(number)])
        self.param_groups = [group for part in self.parts for group in part.param_groups]

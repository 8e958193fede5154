"""The step of a training whose module was best on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recycle_onnx.training.options import TrainingResult


@dataclass(frozen=True)
class Best:
    """The best step so far: its weights by name, and what was measured with them."""

    parameters: dict[str, Tensor]
    result: TrainingResult

    @classmethod
    def of(cls, trained: dict[str, nn.Parameter], result: TrainingResult) -> Best:
        """Copy what is trained."""
        # Cloned: the optimiser goes on changing the parameters in place.
        return cls({name: parameter.detach().clone() for name, parameter in trained.items()}, result)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Best:
        """Restore the best step from the state of an unfinished training."""
        result = {**state["result"], "held_out_acceptance": tuple(state["result"]["held_out_acceptance"])}
        return cls(state["parameters"], TrainingResult(**result))

    @torch.no_grad()
    def restore(self, trained: dict[str, nn.Parameter]) -> None:
        """Copy the best weights back into what is trained."""
        for name, parameter in trained.items():
            parameter.copy_(self.parameters[name])

"""In which numbers a model is computed: float32, or bfloat16 where the device multiplies it faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recycle_onnx.training.options import Precision


def computing(base: nn.Module, device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Within it `base`, and what follows from it, is computed in `precision`.

    Processors without instructions for bfloat16 multiply it several times slower than float32; there a base that is
    held in it is widened a part at a time.
    """
    if precision == "fp32":
        return nullcontext()
    if multiplies_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return widened(base)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are worth it there."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Within it the parts of `model` compute in float32, each with a copy of its weights while it is needed."""
    hooks = []
    for part in model.modules():
        own = dict(part.named_parameters(recurse=False))
        if all(parameter.dtype == torch.float32 for parameter in own.values()):
            continue
        if isinstance(part, nn.Embedding):  # a few rows of many
            hooks.append(part.register_forward_hook(lambda _part, _given, rows: rows.float()))
        else:
            hooks.append(part.register_forward_pre_hook(_widen))
            hooks.append(part.register_forward_hook(_Narrow(own)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widen(part: nn.Module, _: Any) -> None:
    for name, parameter in part.named_parameters(recurse=False):
        part._parameters[name] = parameter.float()  # type: ignore[assignment]  # a product keeps it for the gradient


class _Narrow:
    def __init__(self, own: dict[str, nn.Parameter]) -> None:
        self._own = own

    def __call__(self, part: nn.Module, _given: Any, _made: Tensor) -> None:
        part._parameters.update(self._own)

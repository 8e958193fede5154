"""In which numbers a model is computed: float32, or bfloat16 where the device multiplies it faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recycle_onnx.training.options import Precision

TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCT = 1024
"""Rows and columns of the matrices that are timed: 2 billion operations, a few hundredths of a second."""
TRIALS = 5
"""The best of so many counts, as another program may hold the processor for one."""


def computing(base: nn.Module, device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Compute `base`, and what follows from it, in `precision` within the block.

    Processors without instructions for bfloat16 multiply it several times slower than float32; there a base that is
    held in it is widened a part at a time.
    """
    if precision == "fp32":
        return nullcontext()
    if multiplies_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return widened(base)


def precision_of(base: nn.Module) -> Precision:
    """Return the precision to compute a base in that is held in its weights' type."""
    return "bf16" if next(base.parameters()).dtype == torch.bfloat16 else "fp32"


def best_precision(device: torch.device, notice: Callable[[str], None]) -> Precision:
    """Return what to compute a frozen base and its module in: what the device multiplies fastest.

    Some processors multiply float32 at a tenth of the speed of bfloat16, others bfloat16 at a fraction of float32.
    """
    if not multiplies_bf16(device):
        return "fp32"
    if device.type != "cpu":
        return "bf16"
    speeds = product_speeds(device)
    best = max(speeds, key=lambda precision: speeds[precision])
    shown = ", ".join(f"{speed:,.0f} in {precision}" for precision, speed in speeds.items())
    notice(f"note: training in {best}: matrix products here reach {shown} (billions of operations per second)")
    return best


def product_speeds(device: torch.device) -> dict[Precision, float]:
    """Measure the speed of matrix products by precision, in billions of floating-point operations per second.

    It is the best of `TRIALS`: where other programs share the processor, a single trial tells of them.
    """
    speeds: dict[Precision, float] = {}
    for precision, kind in TYPES.items():
        left, right = (torch.ones(PRODUCT, PRODUCT, dtype=kind, device=device) for _ in range(2))
        (left @ right).sum().item()  # the first product sets things up
        speeds[precision] = 2 * PRODUCT**3 / min(_seconds(left, right) for _ in range(TRIALS)) / 1e9
    return speeds


def _seconds(left: Tensor, right: Tensor) -> float:
    began = time.perf_counter()
    (left @ right).sum().item()
    return time.perf_counter() - began


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether matrix products in bfloat16 are worth it on the device."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Let the parts of `model` compute in float32 within the block, each with a short-lived copy of its weights."""
    hooks = []
    for part in model.modules():
        own = dict(part.named_parameters(recurse=False))
        if all(parameter.dtype == torch.float32 for parameter in own.values()):
            continue
        if isinstance(part, nn.Embedding):  # a few rows of many
            hooks.append(part.register_forward_hook(lambda _part, _inputs, rows: rows.float()))
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

    def __call__(self, part: nn.Module, _inputs: Any, _made: Tensor) -> None:
        part._parameters.update(self._own)

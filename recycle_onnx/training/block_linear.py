"""A product with a quantized matrix of which only the scales are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recycle_onnx.tuning import Floats, Grid


class BlockLinear(nn.Module):
    """A product of x [..., K] with the rows of quantized grids that follow each other, computed in `dtype`.

    The parameters are relative changes of the scales, one a block.
    """

    def __init__(self, grids: Sequence[Grid], bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias, self.dtype = bias, dtype
        self.codes = [torch.from_numpy(grid.codes) for grid in grids]
        self.start = [torch.from_numpy(grid.scales) for grid in grids]
        self.changes = nn.ParameterList(torch.zeros_like(scales) for scales in self.start)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.dtype)
            parts = [
                _Product.apply(x, codes, scales)  # type: ignore[no-untyped-call]
                for codes, scales in zip(self.codes, self._scales(), strict=True)
            ]
            y: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    def scales(self) -> list[Floats]:
        """Return the scales [N, B] of each grid as they are now."""
        return [scales.detach().numpy() for scales in self._scales()]

    def _scales(self) -> list[Tensor]:
        return [start * (1 + change) for start, change in zip(self.start, self.changes, strict=True)]


class _Product(torch.autograd.Function):
    """A product that makes its matrix anew for the gradient, so that of all layers only codes are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(x, codes, scales)
        return x @ _matrix(codes, scales, x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        x, codes, scales = ctx.saved_tensors
        of_matrix = gradient.flatten(0, -2).T @ x.flatten(0, -2)
        of_scales = (of_matrix.view(codes.shape) * codes).sum(-1, dtype=torch.float32)
        return gradient @ _matrix(codes, scales, x.dtype), None, of_scales


def _matrix(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes * scales[..., None]).flatten(1).to(dtype)

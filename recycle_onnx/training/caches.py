"""What a layer's attention sees besides its own rows: a cache in decoding, a chain's steps in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from recycle_onnx.checkpoint import BaseConfig


class Past(Protocol):
    """What a layer's attention sees besides its own rows."""

    @property
    def start(self) -> int:
        """Position of the first row."""
        ...

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows [B, K, S, D]; give all rows so far."""
        ...

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Which keys the latest `rows` may see, bool [rows, keys]; None where causality says it all."""
        ...

    def distances(self, rows: int, device: torch.device) -> Tensor:
        """How many positions before each of the latest `rows` a key lies, i64 [rows, keys]."""
        ...


class LayerCache:
    """Keys and values [B, K, capacity, D] of one layer, filled from the front."""

    def __init__(self, config: BaseConfig, batch: int, capacity: int, device: torch.device | None = None) -> None:
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self.length = 0

    @property
    def start(self) -> int:
        """Position of the next row."""
        return self.length

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows [B, K, S, D]; give all rows so far."""
        stop = self.length + key.shape[2]
        self.keys[:, :, self.length : stop] = key
        self.values[:, :, self.length : stop] = value
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Causal; `extend` has counted the rows already."""
        if self.length == rows:
            return None
        return torch.ones(rows, self.length, dtype=torch.bool, device=device).tril(self.length - rows)

    def distances(self, rows: int, device: torch.device) -> Tensor:
        """As in `mask`, the rows are counted already."""
        places = torch.arange(self.length, device=device)
        return places[self.length - rows :, None] - places


class Unrolled:
    """Keys and values of one layer in training, of all rows at once, through the steps of a chain.

    Step 1 reads true hidden states, step k the states of step k-1, one position later. As in decoding, a row of step
    k sees the true rows before its chain, and of the later steps its own chain only (EAGLE-3 trains the same way,
    arXiv 2503.01840).
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def start(self) -> int:
        """Step k begins at position k - 1."""
        return len(self.keys)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a step; give the rows of all steps, one after the other."""
        self.keys.append(key)
        self.values.append(value)
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """True rows up to the chain's beginning, and of each later step the chain's own row."""
        step = len(self.keys)
        if step == 1:
            return None
        query = torch.arange(step - 1, step - 1 + rows, device=device)[:, None]
        parts = []
        for index, key in enumerate(self.keys):
            position = torch.arange(index, index + key.shape[2], device=device)[None]
            parts.append(position <= query - (step - 1) if index == 0 else position == query - (step - 1 - index))
        return torch.cat(parts, dim=1)

    def distances(self, rows: int, device: torch.device) -> Tensor:
        """Rows of step k begin at position k - 1."""
        first = len(self.keys) - 1
        places = [torch.arange(index, index + key.shape[2], device=device) for index, key in enumerate(self.keys)]
        return torch.arange(first, first + rows, device=device)[:, None] - torch.cat(places)


Cache = Sequence[Past]


def new_cache(
    config: BaseConfig, num_layers: int, batch: int, capacity: int, device: torch.device | None = None
) -> list[LayerCache]:
    """An empty cache for `num_layers` layers."""
    return [LayerCache(config, batch, capacity, device) for _ in range(num_layers)]

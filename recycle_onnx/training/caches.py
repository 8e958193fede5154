"""What a layer's attention sees besides its own rows: a cache in decoding, a chain's steps in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from recycle_onnx.checkpoint import BaseConfig


class Past(Protocol):
    """The keys and values that a layer's attention sees besides its own rows."""

    @property
    def start(self) -> int:
        """Position of the first row."""
        ...

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows [B, K, S, D]; give all rows so far."""
        ...

    def chain(self, window: int | None) -> Chain:
        """Return what each row sees besides those, in a row of its own, and not further back than the window."""
        ...

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Return which keys the latest `rows` may see, bool [rows, keys]; None where causality says it all."""
        ...

    def distances(self, rows: int, device: torch.device) -> Tensor:
        """Return how many positions before each of the latest `rows` a key lies, i64 [rows, keys]."""
        ...


Chain = list[tuple[Tensor, Tensor]]
"""Keys and values [B, K, S, D] that stand row by row beside the queries: row r sees row r of each."""


class LayerCache:
    """Keys and values [B, K, rows, D] of one layer, filled from the front; they grow `BLOCK` rows at a time.

    Rows that are not filled yet are zeros which `mask` hides. So what attention reads is contiguous: on a CPU,
    batched products over a slice of a larger buffer take three times as long.
    """

    BLOCK = 256
    """What is outgrown is freed, but the C library seldom gives it back: with 64 rows, writing 128 texts of 256 tokens
    took 3.9 GB of a model of 135 M parameters, with 256 rows 1.7 GB and as much time."""

    def __init__(self, config: BaseConfig, batch: int, dtype: torch.dtype, device: torch.device | None = None) -> None:
        shape = (batch, config.num_kv_heads, 0, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.length = 0

    @property
    def start(self) -> int:
        """Position of the next row."""
        return self.length

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows [B, K, S, D]; give all rows so far, and those that are kept free behind them."""
        stop = self.length + key.shape[2]
        if stop > self.keys.shape[2]:
            rows = -(-stop // self.BLOCK) * self.BLOCK - self.keys.shape[2]
            self.keys, self.values = (functional.pad(part, (0, 0, 0, rows)) for part in (self.keys, self.values))
        self.keys[:, :, self.length : stop] = key
        self.values[:, :, self.length : stop] = value
        self.length = stop
        return self.keys, self.values

    def chain(self, window: int | None) -> Chain:
        """Return no chain: all rows are in one place."""
        return []

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Return a causal mask; `extend` has counted the rows already."""
        kept = self.keys.shape[2]
        return torch.ones(rows, kept, dtype=torch.bool, device=device).tril(self.length - rows)

    def distances(self, rows: int, device: torch.device) -> Tensor:
        """Return distances from the latest rows, which `extend` has counted already, as in `mask`."""
        places = torch.arange(self.keys.shape[2], device=device)
        return places[self.length - rows : self.length, None] - places


class Unrolled:
    """Keys and values of one layer in training, of all rows at once, through the steps of a chain.

    Step 1 reads true hidden states, step k the states of step k-1, one position later. As in decoding, a row of step
    k sees the true rows before its chain, and of the later steps its own chain only (EAGLE-3 trains the same way,
    arXiv 2503.01840). So row r of step k reads the true rows up to r, and row r of each step after the first one.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def start(self) -> int:
        """Step k begins at position k - 1."""
        return len(self.keys)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a step; give its true rows, as many as it has rows itself."""
        self.keys.append(key)
        self.values.append(value)
        rows = key.shape[2]
        return self.keys[0][:, :, :rows], self.values[0][:, :, :rows]

    def chain(self, window: int | None) -> Chain:
        """Return keys and values [B, K, S, D] of the steps after the first, of which each row sees its own only."""
        rows, first = self.keys[-1].shape[2], 1 if window is None else max(1, len(self.keys) - window)
        steps = zip(self.keys[first:], self.values[first:], strict=True)
        return [(key[:, :, :rows], value[:, :, :rows]) for key, value in steps]

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Return a causal mask over the true rows, which end with the chain's beginning."""
        return None if len(self.keys) == 1 else torch.ones(rows, rows, dtype=torch.bool, device=device).tril()

    def distances(self, rows: int, device: torch.device) -> Tensor:
        """Return distances to the true rows: row r of step k stands at position r + k - 1."""
        places = torch.arange(rows, device=device)
        return places[:, None] + len(self.keys) - 1 - places


Cache = Sequence[Past]


def cache_bytes(config: BaseConfig, batch: int, length: int, dtype: torch.dtype) -> int:
    """Count the bytes that a base's cache takes of `batch` texts with `length` tokens."""
    rows = -(-length // LayerCache.BLOCK) * LayerCache.BLOCK
    return 2 * config.num_layers * batch * config.num_kv_heads * rows * config.head_dim * dtype.itemsize


def new_cache(
    config: BaseConfig,
    num_layers: int,
    batch: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> list[LayerCache]:
    """Make an empty cache for `num_layers` layers."""
    return [LayerCache(config, batch, dtype, device) for _ in range(num_layers)]

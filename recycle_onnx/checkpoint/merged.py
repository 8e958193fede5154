"""A base's weights with an adapter merged into them, as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.adapter import Adapter, LowRank, stored_name
from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.weights import ALL, Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256
from recycle_onnx.safetensors_file import Stream, bytes_of, write_streams

VALUES_AT_ONCE = 1 << 20
"""Of a tensor that is written: 4 MB in float32."""


class MergedWeights(Weights):
    """The tensors of a base, those that an adapter changes computed in float32; they are float32 then.

    `tables` are the names of embedding and LM head where the base ties them: one tensor under one of the names. An
    adapter that has another one for either unties them, as PEFT does when it merges.
    """

    def __init__(self, base: Weights, adapter: Adapter, tables: tuple[str, str] | None) -> None:
        """Find what the adapter changes.

        Raises:
            InputError: the base lacks a module, or has it in another shape, or ties what is changed.
        """
        super().__init__([*base.files, *adapter.files])
        self._base, self._adapter = base, adapter
        self._aliases = _untied(base, adapter, tables)
        self._refuse_tied(tables)
        self._added = {self._find(name): change for name, change in adapter.added.items()}
        self._replaced = {self._find(name): stored for name, stored in adapter.replaced.items()}
        for name, change in self._added.items():
            self._check(name, change.shape(adapter.tensors))
        for name, stored in self._replaced.items():
            self._check(name, adapter.tensors.shape(stored))

    @property
    def where(self) -> Path:
        """What messages name: the base."""
        return self._base.where

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return self._base.names() | self._aliases.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._base.shape(self._aliases.get(name, name))

    def stored_type(self, name: str | None = None) -> str:
        """Return the type that a tensor (the first one) is read in: float32 where something is added."""
        if name in self._added:
            return "F32"
        if name in self._replaced:
            return self._adapter.tensors.stored_type(self._replaced[name])
        return self._base.stored_type(self._aliases.get(name, name) if name else None)

    def integer_type(self, name: str) -> str | None:
        """Return the base's type of a tensor that the adapter leaves alone, where that is small integers."""
        changed = name in self._added or name in self._replaced
        return None if changed else self._base.integer_type(self._aliases.get(name, name))

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read one tensor that has an `integer_type`, or some of its rows, as the base has it."""
        return self._base.integers(self._aliases.get(name, name), rows)

    def copy_to(self, folder: Path) -> None:
        """Write `model.safetensors` into `folder`, merged a few rows at a time."""
        write_streams(
            folder / "model.safetensors",
            {
                name: Stream(self.stored_type(name), self.shape(name), self._pieces(name))
                for name in sorted(self.names())
            },
        )

    def digest(self) -> str:
        """Return the SHA-256 over the base's digest and those of the adapter's files."""
        digests = [self._base.digest(), *(sha256(path) for path in self._adapter.files)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _pieces(self, name: str) -> Iterator[memoryview]:
        rows, *others = self.shape(name) or (1,)
        if rows == 1:  # or without any dimension, of which no rows can be read
            yield bytes_of(self.stored(name))
            return
        step = max(1, VALUES_AT_ONCE // max(1, prod(others)))
        for start in range(0, rows, step):
            yield bytes_of(self.stored(name, slice(start, min(rows, start + step))))

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        if name in self._replaced:
            values = self._adapter.tensors.stored(self._replaced[name], rows)
        else:
            values = self._base.stored(self._aliases.get(name, name), rows)
        if change := self._added.get(name):
            return values.astype(np.float32) + self._product(change, rows)
        return values

    def _product(self, change: LowRank, rows: slice) -> NDArray[np.float32]:
        a, b = (self._adapter.tensors.float32(name) for name in (change.a, change.b))
        product = a[:, rows].T @ b.T if change.transposed else b[rows] @ a
        scaled: NDArray[np.float32] = product * np.float32(change.scale)
        return scaled

    def _refuse_tied(self, tables: tuple[str, str] | None) -> None:
        """Refuse products that are added to a table which is embedding and LM head: PEFT's own merge changes both."""
        for name in self._adapter.added:
            if tables and stored_name(name, tables):
                raise InputError(
                    f"{self._adapter.folder}: adds to {name}, and embedding and LM head are one tensor in "
                    f"{self.where}; merging would change both: train such a module with `modules_to_save`"
                )

    def _find(self, name: str) -> str:
        if (stored := stored_name(name, self.names())) is None:
            raise InputError(
                f"{self._adapter.folder}: changes {name}, which {self._base.where} lacks: an adapter for another base"
                f"{self._made_for()}"
            )
        return stored

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if (own := self.shape(name)) != shape:
            raise InputError(
                f"{self._adapter.folder}: changes {name} of shape {list(shape)}; {self._base.where} has {list(own)}: "
                f"an adapter for another base{self._made_for()}"
            )

    def _made_for(self) -> str:
        base = self._adapter.config.get("base_model_name_or_path")
        return f" ({base})" if isinstance(base, str) and base else ""


def _untied(base: Weights, adapter: Adapter, tables: tuple[str, str] | None) -> dict[str, str]:
    """Return the name of a tied table that the files lack, and the one they have, where the adapter replaces either."""
    if tables is None:
        return {}
    present = base.names()
    here, missing = tables if tables[0] in present else tables[::-1]
    if missing in present or not any(stored_name(name, tables) for name in adapter.replaced):
        return {}
    return {missing: here}

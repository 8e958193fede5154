"""The tensors of a base under their neutral names, wherever its family's files keep them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.base import BaseConfig, Shapes
from recycle_onnx.checkpoint.families.family import Family, StoredMatrix
from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.weights import ALL, Weights

Array = NDArray[Any]

NUMBER = re.compile(r"(?<=layers\.)\d+")
"""The number of a layer in a tensor's name: families name tensors with `{}` in its place."""
TRUNK, EMBEDDING = "model.", "embed_tokens"
"""The neutral names are those of a Llama in transformers: a trunk, and an LM head beside it."""
TABLE, HEAD = f"{TRUNK}{EMBEDDING}.weight", "lm_head.weight"
ROWS_AT_ONCE = 4096
"""Rows that are compared in one piece: an embedding whole would take hundreds of megabytes twice."""


class BaseWeights:
    """Neutral tensors, each a part of a stored one; checked against the description when they are opened.

    `base` is the description as the files bear it out: tied embeddings may lie under the head's name alone, and where
    the files have two tables that differ they are not tied, whatever the config says (as in transformers).
    """

    def __init__(self, base: BaseConfig, family: Family, weights: Weights) -> None:
        """Find and check all tensors.

        Raises:
            InputError: a tensor is missing, or has another shape or type than the config implies.
        """
        self.weights = weights
        names = _Names(family, weights.names())
        table, head = names.place(TABLE), names.place(HEAD)
        if base.tied_embeddings and _differ(weights, table[0], head[0]):
            base = replace(base, tied_embeddings=False)
        self.base, self.shapes = base, base.tensor_shapes()
        self._head = family.head
        self._places = {name: names.place(name) for name in self.shapes}
        if base.tied_embeddings and table[0] not in weights.names() and head[0] in weights.names():
            self._places[TABLE] = head[0], table[1]
        weights.check(_stored_shapes(self.shapes, self._places))

    @property
    def files(self) -> list[Path]:
        """The safetensors files."""
        return self.weights.files

    def digest(self) -> str:
        """Return the SHA-256 of the files."""
        return self.weights.digest()

    def num_parameters(self) -> int:
        """Count the values in all tensors of the base."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def stored_type(self, name: str = TABLE) -> str:
        """Return the type of one neutral tensor, the embedding's table, in safetensors' words: F32, F16 or BF16."""
        return self.weights.stored_type(self._places[name][0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one neutral tensor."""
        return self.shapes[name]

    def stored(self, name: str, rows: slice = ALL) -> Array:
        """Read one neutral tensor, or some of its rows, in the type it is stored in.

        Raises:
            InputError: a value is not finite.
        """
        stored_name, how = self._places[name]
        sizes, index = self._parts(name)
        if how.transposed or how.by_head:
            array = _unpack(self.weights.stored(stored_name), how, sizes, index, self.base.num_heads)[rows]
        else:
            before = sum(sizes[:index])
            start, stop, _ = rows.indices(sizes[index])
            array = self.weights.stored(stored_name, slice(before + start, before + stop))
        return np.ascontiguousarray(array)

    def float32(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Read one neutral tensor, or some of its rows, as float32; stored float32 values are not rounded."""
        return np.ascontiguousarray(self.stored(name, rows), dtype=np.float32)

    def integer_type(self, name: str) -> str | None:
        """Return the file's name for the small integers that hold the tensor; None where it has floats."""
        stored_name, how = self._places[name]
        return None if how.transposed else self.weights.integer_type(stored_name)

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read one neutral tensor that has an `integer_type`, or some of its rows, as the file has it."""
        stored_name, how = self._places[name]
        sizes, index = self._parts(name)
        if how.by_head:
            places = np.arange(sum(sizes))[:, None]
            return self.weights.integers(stored_name).at(
                _unpack(places, how, sizes, index, self.base.num_heads)[rows, 0]
            )
        before = sum(sizes[:index])
        start, stop, _ = rows.indices(sizes[index])
        return self.weights.integers(stored_name, slice(before + start, before + stop))

    def _parts(self, name: str) -> tuple[list[int], int]:
        """Return the rows of each part of the stored tensor that holds a neutral one, and which part that is."""
        _, how = self._places[name]
        suffix = name.rpartition(".")[2]
        sizes = [self.shapes[f"{part}.{suffix}"][0] for part in how.parts]
        return sizes, how.parts.index(name.removesuffix(f".{suffix}"))

    def pack(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Arrange neutral tensors as the files keep them, by the files' names."""
        packed = {}
        for stored_name, how in dict(self._places.values()).items():
            parts = [tensors[f"{part}.{stored_name.rpartition('.')[2]}"] for part in how.parts]
            packed[stored_name] = _pack(parts, how, self.base.num_heads)
        return packed

    def others(self) -> set[str]:
        """Return names of what else the files hold, but for copies of tied weights."""
        return self.weights.names() - {stored for stored, _ in self._places.values()} - {f"{self._head}.weight"}


def stored_shapes(base: BaseConfig, family: Family, present: set[str]) -> Shapes:
    """Return names and shapes of what files with tensors of the names `present` must hold."""
    shapes, names = base.tensor_shapes(), _Names(family, present)
    return _stored_shapes(shapes, {name: names.place(name) for name in shapes})


def table_names(family: Family, present: set[str]) -> tuple[str, str]:
    """Return what files with tensors of the names `present` call the embedding's table and the LM head's."""
    names = _Names(family, present)
    return names.place(TABLE)[0], names.place(HEAD)[0]


def _stored_shapes(neutral: Shapes, places: Mapping[str, tuple[str, StoredMatrix]]) -> Shapes:
    shapes: Shapes = {}
    for stored_name, how in places.values():
        suffix = stored_name.rpartition(".")[2]
        parts = [neutral[f"{part}.{suffix}"] for part in how.parts]
        shape = (sum(part[0] for part in parts), *parts[0][1:])
        shapes[stored_name] = shape[::-1] if how.transposed else shape
    return shapes


class _Names:
    """The places where a family's files have the neutral tensors."""

    def __init__(self, family: Family, present: set[str]) -> None:
        self._stored: dict[str, tuple[str, StoredMatrix]] = {}
        for pattern, what in family.tensors.items():
            stored = what if isinstance(what, StoredMatrix) else StoredMatrix((what,))
            self._stored |= dict.fromkeys(stored.parts, (pattern, stored))
        anchors = [self._stored.get(module, (module,))[0] for module in (EMBEDDING, "norm")]
        fits = (trunk for anchor in anchors for trunk in family.trunk if f"{trunk}{anchor}.weight" in present)
        self._trunk, self._head = next(fits, family.trunk[0]), family.head

    def place(self, name: str) -> tuple[str, StoredMatrix]:
        """Return the stored name of a neutral tensor, and what that holds (neutral names without weight or bias)."""
        module, _, suffix = name.rpartition(".")
        if not module.startswith(TRUNK):
            return f"{self._head}.{suffix}", StoredMatrix((module,))
        module = module.removeprefix(TRUNK)
        number = NUMBER.search(module)
        layer = number.group() if number else ""
        general = NUMBER.sub("{}", module)
        pattern, how = self._stored.get(general, (general, StoredMatrix((general,))))
        parts = tuple(TRUNK + part.format(layer) for part in how.parts)
        return f"{self._trunk}{pattern.format(layer)}.{suffix}", StoredMatrix(parts, how.transposed, how.by_head)


def _differ(weights: Weights, first: str, second: str) -> bool:
    """Tell whether the files have both tensors, and other values in them."""
    if not {first, second} <= weights.names():
        return False
    if weights.shape(first) != weights.shape(second):
        return True
    rows = weights.shape(first)[0]
    parts = (slice(start, min(rows, start + ROWS_AT_ONCE)) for start in range(0, rows, ROWS_AT_ONCE))
    return not all(np.array_equal(weights.float32(first, part), weights.float32(second, part)) for part in parts)


def _unpack(array: Array, how: StoredMatrix, rows: list[int], index: int, heads: int) -> Array:
    if how.transposed:
        array = array.T
    if how.by_head:
        by_head = array.reshape(heads, len(rows), -1, *array.shape[1:])
        return by_head[:, index].reshape(-1, *array.shape[1:])
    start = sum(rows[:index])
    return array[start : start + rows[index]]


def _pack(parts: list[Array], how: StoredMatrix, heads: int) -> Array:
    if how.by_head:
        shape = parts[0].shape
        stacked = np.stack([part.reshape(heads, -1, *shape[1:]) for part in parts], axis=1)
        return stacked.reshape(-1, *shape[1:])
    array = np.concatenate(parts)
    return np.ascontiguousarray(array.T) if how.transposed else array

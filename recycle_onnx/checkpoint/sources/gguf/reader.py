"""A GGUF file: metadata, and tensors in the memory-mapped file.

PyPI's `gguf` has a reader too, whose constants and dequantization are used; on a vocabulary of 150,000 tokens and as
many merges it takes seven times as long and 450 MB more, and a truncated file leaves it as an IndexError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from recycle_onnx.checkpoint.sources.gguf.values import check_metadata
from recycle_onnx.errors import InputError
from recycle_onnx.untrusted import check_regular

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's value types that are numbers, as `struct` calls them."""
STRING, ARRAY = 8, 9
"""The two value types that have a length."""
VERSIONS = (2, 3)
"""Version 1 had counts of 32 bits, and no file of it is left; in big-endian files the number is turned around."""
AFTER_MAGIC = 4
"""Bytes: the version follows the four letters GGUF."""
MOST_DIMENSIONS = 4
"""ggml's own limit."""
MOST_VALUES = 1 << 23
"""Values in lists, of the whole header: five times those of a vocabulary of 262,144 tokens with as many merges."""
MOST_TENSORS = 1 << 17
"""Many times those of the largest models: a damaged count is refused, not believed."""


@dataclass(frozen=True)
class TensorInfo:
    """The name, shape, type and place of a tensor; `shape` is in numpy's order, rows first."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


class TruncatedError(Exception):
    """An error for a file that ends before what its header promises."""


class GgufFile:
    """A GGUF file that has been read up to its tensors' values."""

    def __init__(self, path: Path) -> None:
        """Read metadata and tensor table.

        Raises:
            InputError: of another version, truncated, damaged, one part of several, or stored in a type that `gguf`
                cannot decode.
        """
        self.path = path
        check_regular(path)
        try:
            self.metadata, self.tensors = self._read(np.memmap(path, mode="r", dtype=np.uint8))
        except TruncatedError as error:
            raise InputError(f"{path}: truncated ({error}); fetch it again") from error
        except ValueError as error:
            raise InputError(f"{path}: damaged header ({error}); fetch it again") from error
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise InputError(f"{path}: one of {parts} parts; join them first: llama-gguf-split --merge {path.name} OUT")
        for kind in {tensor.type for tensor in self.tensors.values()}:
            self._refuse_undecodable(kind)

    def _read(self, data: NDArray[np.uint8]) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        cursor = _Cursor(data.data, AFTER_MAGIC)
        number = cursor.number("I")
        if number not in VERSIONS:
            what = "big-endian" if number & 0xFFFF == 0 else f"version {number}"
            raise InputError(f"{self.path}: a {what} GGUF is not supported; expected version 2 or 3, little-endian")
        num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = cursor.string()
            if key in metadata:
                raise ValueError(f"{key!r:.100} is there twice")
            metadata[key] = cursor.value(cursor.number("I"))
        check_metadata(metadata, self.path)
        if num_tensors > MOST_TENSORS:
            raise ValueError(f"{num_tensors:,} tensors, where {MOST_TENSORS:,} are the most")
        table = [cursor.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-cursor.position // alignment) * alignment
        tensors = {row[0]: self._place(len(data), start, alignment, *row) for row in table}
        if len(tensors) != len(table):
            raise ValueError("a tensor's name is there twice")
        _check_apart(tensors.values())
        return metadata, tensors

    def _place(
        self, size: int, start: int, alignment: int, name: str, shape: tuple[int, ...], kind: int, offset: int
    ) -> TensorInfo:
        try:
            type_ = GGMLQuantizationType(kind)
        except ValueError as error:
            raise InputError(
                f"{self.path}: {name} is stored as ggml type {kind}, which gguf {version('gguf')} does not know; "
                "upgrade gguf, or fetch another quantization such as Q8_0"
            ) from error
        block, block_bytes = GGML_QUANT_SIZES[type_]
        if offset % alignment:
            raise ValueError(f"{name} lies at {offset}, which is no multiple of the alignment, {alignment}")
        if not shape or not all(shape) or shape[-1] % block:
            raise InputError(
                f"{self.path}: {name} has shape {list(shape)}, which {type_.name} cannot have; fetch it again"
            )
        count = prod(shape) // block * block_bytes
        if start + offset + count > size:
            missing = start + offset + count - size
            raise TruncatedError(f"{name} ends {missing:,} bytes after the file's end")
        return TensorInfo(name, shape, type_.name, start + offset, count)

    def _refuse_undecodable(self, kind: str) -> None:
        _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        if kind in PLAIN:
            return
        try:
            dequantize(np.zeros((1, size), dtype=np.uint8), GGMLQuantizationType[kind])
        except NotImplementedError as error:
            raise InputError(
                f"{self.path}: quantization {kind} is not supported (gguf {version('gguf')} cannot decode it); "
                "expected F32, F16, BF16, Q8_0, Q4_0, Q4_K and the like"
            ) from error

    def raw(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """Return a tensor's bytes as [rows, bytes a row]; blocks never reach over a row's end.

        The file is mapped as long as the array lives: mapped pages count as this process's memory.
        """
        values = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.bytes,))
        return values.reshape(prod(tensor.shape[:-1]), -1)

    def types(self) -> dict[str, int]:
        """Count how many tensors are stored in each type."""
        kinds = [tensor.type for tensor in self.tensors.values()]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _check_apart(tensors: Iterable[TensorInfo]) -> None:
    """Refuse tensors that lie upon each other: a small file could claim any number of large ones."""
    for first, second in pairwise(sorted(tensors, key=lambda tensor: tensor.offset)):
        if first.offset + first.bytes > second.offset:
            raise ValueError(f"{first.name} reaches into {second.name}")


PLAIN: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16}
"""Types that numpy reads as they are; all others go through `gguf`'s own decoders."""


def decode(rows: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Convert rows of bytes in ggml type `kind` to float32 [rows, values a row]."""
    with np.errstate(invalid="ignore"):  # a damaged scale; whoever reads the weights refuses what is not finite
        values = rows.view(PLAIN[kind]) if kind in PLAIN else dequantize(rows, GGMLQuantizationType[kind])
    return np.asarray(values, dtype=np.float32)


class _Cursor:
    """A reader of GGUF's little-endian values in order; a list holds numbers or texts, never lists."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self.position = position
        self._listed = 0

    def _take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self._data):
            raise TruncatedError("it ends within its header")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, format_: str) -> Any:
        return struct.unpack("<" + format_, self._take(struct.calcsize("<" + format_)))[0]

    def string(self) -> str:
        return bytes(self._take(self.number("Q"))).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"value type {kind}")
        kind, count = self.number("I"), self.number("Q")
        self._listed += count
        if self._listed > MOST_VALUES:
            raise ValueError(f"lists of {self._listed:,} values, where {MOST_VALUES:,} are the most")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        if kind not in NUMBERS:
            raise ValueError(f"a list of values of type {kind}")
        one = "<" + NUMBERS[kind]
        return [value for (value,) in struct.iter_unpack(one, self._take(count * struct.calcsize(one)))]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read name, shape with the rows first, ggml type and offset in the data section."""
        name, dimensions = self.string(), self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"{dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

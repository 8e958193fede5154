"""A GGUF file: metadata, and tensors in the memory-mapped file.

PyPI's `gguf` has a reader too, whose constants and dequantization are used; on a vocabulary of 150,000 tokens and as
many merges it takes seven times as long and 450 MB more, and a truncated file leaves it as an IndexError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from recycle_onnx.errors import InputError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's value types that are numbers, as `struct` calls them."""
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
AFTER_MAGIC = 4
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies; `shape` is in numpy's order, rows first."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


class TruncatedError(Exception):
    """The file ends before what its header promises."""


class GgufFile:
    """A GGUF file that has been read up to its tensors' values."""

    def __init__(self, path: Path) -> None:
        """Read metadata and tensor table.

        Raises:
            InputError: of another version, truncated, damaged, one part of several, or stored in a type that `gguf`
                cannot decode.
        """
        self.path = path
        self._data = np.memmap(path, mode="r", dtype=np.uint8)
        try:
            self.metadata, self.tensors = self._read()
        except TruncatedError as error:
            raise InputError(f"{path}: truncated ({error}); fetch it again") from error
        except (UnicodeDecodeError, KeyError, ZeroDivisionError) as error:
            raise InputError(f"{path}: damaged header ({type(error).__name__}: {error}); fetch it again") from error
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise InputError(f"{path}: one of {parts} parts; join them first: llama-gguf-split --merge {path.name} OUT")
        for kind in {tensor.type for tensor in self.tensors.values()}:
            self._refuse_undecodable(kind)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        cursor = _Cursor(self._data.data, AFTER_MAGIC)
        number = cursor.number("I")
        if number not in VERSIONS:
            what = "big-endian" if number & 0xFFFF == 0 else f"version {number}"
            raise InputError(f"{self.path}: a {what} GGUF is not supported; expected version 2 or 3, little-endian")
        num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
        metadata = {}
        for _ in range(num_values):
            key = cursor.string()
            metadata[key] = cursor.value(cursor.number("I"))
        table = [cursor.tensor() for _ in range(num_tensors)]
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-cursor.position // alignment) * alignment
        return metadata, {row[0]: self._place(start, *row) for row in table}

    def _place(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        try:
            type_ = GGMLQuantizationType(kind)
        except ValueError as error:
            raise InputError(
                f"{self.path}: {name} is stored as ggml type {kind}, which gguf {version('gguf')} does not know; "
                "upgrade gguf, or fetch another quantization such as Q8_0"
            ) from error
        block, size = GGML_QUANT_SIZES[type_]
        if not shape or shape[-1] % block:
            raise InputError(f"{self.path}: {name} has shape {list(shape)}, which {type_.name} cannot have; damaged")
        count = prod(shape) // block * size
        if start + offset + count > len(self._data):
            missing = start + offset + count - len(self._data)
            raise TruncatedError(f"{name} ends {missing:,} bytes after the file's end")
        return Tensor(name, shape, type_.name, start + offset, count)

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

    def raw(self, tensor: Tensor) -> NDArray[np.uint8]:
        """A tensor's bytes as [rows, bytes a row]; blocks never reach over a row's end."""
        values = self._data[tensor.offset : tensor.offset + tensor.bytes]
        return values.reshape(prod(tensor.shape[:-1]), -1)

    def types(self) -> dict[str, int]:
        """How many tensors are stored in each type."""
        kinds = [tensor.type for tensor in self.tensors.values()]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


PLAIN: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16}


def decode(rows: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Rows of bytes in ggml type `kind` as float32 [rows, values a row]."""
    with np.errstate(invalid="ignore"):  # a damaged scale; whoever reads the weights refuses what is not finite
        values = rows.view(PLAIN[kind]) if kind in PLAIN else dequantize(rows, GGMLQuantizationType[kind])
    return np.asarray(values, dtype=np.float32)


class _Cursor:
    """Reads GGUF's little-endian values one after the other."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self.position = position

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
            raise KeyError(f"value type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind not in NUMBERS:
            return [self.value(kind) for _ in range(count)]
        one = "<" + NUMBERS[kind]
        return [value for (value,) in struct.iter_unpack(one, self._take(count * struct.calcsize(one)))]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape with the rows first, ggml type and offset in the data section."""
        name, dimensions = self.string(), self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise KeyError(f"{dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

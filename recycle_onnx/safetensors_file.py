"""The one writer of safetensors files: https://github.com/huggingface/safetensors#format.

Eight bytes with the header's length, the header in JSON, then the tensors one after another. The library of that name
takes all tensors in memory at once, and is not part of the plain install; this streams them, and needs numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.files import write_pieces

TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""What the format calls the types that numpy, ml_dtypes and torch have under these names."""
SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes a value."""
METADATA = "__metadata__"
"""The one key of a header that names no tensor."""
PYTORCH = {"format": "pt"}
"""What transformers asks of a file of weights, whoever wrote it."""
ALIGNMENT = 8
"""The header is padded to this, so that tensors of any type lie aligned in a mapped file."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Stream:
    """One tensor to write: its type in the format's words, its shape, and its bytes, piece by piece."""

    type: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes | memoryview]

    @property
    def bytes(self) -> int:
        """How many bytes the pieces are in all."""
        return prod(self.shape) * SIZES[self.type]


def write_streams(
    path: Path, tensors: Mapping[str, Stream], metadata: Mapping[str, str] = PYTORCH, *, private: bool = False
) -> None:
    """Write tensors by name in one step. Those of wide types come first, so that every tensor is aligned.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_pieces(path, content(tensors, metadata), private=private)


def content(tensors: Mapping[str, Stream], metadata: Mapping[str, str] = PYTORCH) -> Iterator[bytes | memoryview]:
    """Yield what `write_streams` writes, piece by piece."""
    ordered = by_width(tensors)
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name, tensor in ordered.items():
        start, end = end, end + tensor.bytes
        header[name] = {"dtype": tensor.type, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little")
    yield text
    for tensor in ordered.values():
        yield from tensor.pieces


def write_arrays(path: Path, arrays: Arrays, metadata: Mapping[str, str] = PYTORCH, *, private: bool = False) -> None:
    """Write numpy arrays as `write_streams` does, in the order of their names: equal arrays give equal files."""
    write_streams(path, {name: stream_of(array) for name, array in sorted(arrays.items())}, metadata, private=private)


def stream_of(array: NDArray[Any]) -> Stream:
    """Give an array to write."""
    return Stream(TYPES[array.dtype.name], array.shape, [bytes_of(array)])


def by_width(tensors: Mapping[str, Stream]) -> dict[str, Stream]:
    """Put the tensors in the order in which they are written."""
    return dict(sorted(tensors.items(), key=lambda item: -SIZES[item[1].type]))


def bytes_of(array: NDArray[Any]) -> memoryview:
    """Give the bytes of an array, in the order of its indices."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

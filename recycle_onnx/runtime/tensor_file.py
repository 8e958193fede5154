"""Saved caches, arrays and texts: a safetensors file with a checksum over both."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.safetensors_file import METADATA, by_width, bytes_of, stream_of, write_streams
from recycle_onnx.untrusted import open_regular, parse_json

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
}  # fmt: skip
"""Always little-endian, whatever the machine: the file is read on others."""
CHECKSUM = "sha256"
"""Covers arrays and texts: a file that was cut short or edited is refused."""


def write(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write arrays (float32, float16, int64, int8, uint8) and texts in one step, with a checksum over both.

    Only the owner may read them.

    Raises:
        RecycleError: it cannot be written there.
    """
    streams = by_width({name: stream_of(array) for name, array in arrays.items()})
    checksum = _checksum({name: arrays[name] for name in streams}, metadata)  # goes over them as the file has them
    try:
        write_streams(path, streams, {**metadata, CHECKSUM: checksum}, private=True)
    except OSError as error:
        raise RecycleError(f"{path}: cannot write ({error.strerror or error}); nothing was changed") from error


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the arrays and texts that `write` wrote.

    Raises:
        InputError: no such file, or not one that `write` wrote whole.
    """
    try:
        with open_regular(path) as file:
            data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)  # half the time of `read`, which copies it twice
            data = data[: file.readinto(data.data)]
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error})") from error
    try:
        arrays, metadata = _parse(data)
        stated, counted = metadata.pop(CHECKSUM, None), _checksum(arrays, metadata)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: damaged, or no file of saved caches ({error})") from error
    if stated != counted:
        raise InputError(f"{path}: damaged (its content does not have the checksum it names)")
    return arrays, metadata


def _parse(data: NDArray[np.uint8]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if start > len(data):
        raise ValueError(f"{len(data)} bytes, and a header up to byte {start}")
    header = parse_json(data[8:start].tobytes())
    metadata = dict(header.pop(METADATA))
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("a text of its metadata is none")
    arrays = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        if not 0 <= first <= end <= len(data) - start:
            raise ValueError(f"{name} lies beyond the end")
        flat = data[start + first : start + end]
        arrays[name] = flat.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, metadata


def _checksum(arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(bytes_of(array))
    return digest.hexdigest()

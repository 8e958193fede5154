"""Which files an ONNX graph reads its weights from, found without a library for model files."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from recycle_onnx.errors import RecycleError
from recycle_onnx.untrusted import open_regular

PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
    "entry": {},
}
"""Messages of onnx.proto within messages, by field number: all the ways to a tensor's `external_data`."""
KEY, VALUE, LOCATION = 1, 2, b"location"
"""Fields of an entry of `external_data`, and the key whose value is a path."""
VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5
"""Protocol buffers' wire types; the deprecated groups, 3 and 4, are refused."""
MOST_PARTS = 1 << 20
"""Messages in a graph: a hundred times those of a large model."""
Field = tuple[int, int, int]
"""Field number, and where its content starts and ends."""


def weight_files(path: Path) -> set[str]:
    """Return the locations that the graph's tensors name, in any subgraph or attribute; relative to its folder.

    Raises:
        RecycleError: not an ONNX graph, or one of more than `MOST_PARTS` parts.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {location.decode("utf-8") for location in _locations(data)}
    except (ValueError, IndexError) as error:
        raise RecycleError(f"{path}: cannot load it, not an ONNX graph ({error}); export the bundle again") from error


def _locations(data: mmap.mmap) -> Iterator[bytes]:
    stack, parts = [("model", 0, len(data))], 0
    while stack:
        kind, start, end = stack.pop()
        fields = _fields(data, start, end)
        if kind == "entry":
            entry = {number: data[first:last] for number, first, last in fields}
            if entry.get(KEY) == LOCATION:
                yield entry.get(VALUE, b"")
            continue
        for number, first, last in fields:
            if number in PARTS[kind]:
                stack.append((PARTS[kind][number], first, last))
                parts += 1
            if parts > MOST_PARTS:
                raise ValueError(f"more than {MOST_PARTS:,} parts")


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message that hold bytes: strings and messages."""
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == DELIMITED:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("a part reaches over its end")
            yield tag >> 3, position, position + length
            position += length
        elif kind == VARINT:
            _, position = _varint(data, position)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            position += 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, the lowest first; return it and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")

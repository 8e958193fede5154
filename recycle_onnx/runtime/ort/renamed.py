"""Operators of a model file by the names that a provider knows them by, without a library for model files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

GRAPH, NODE, OP_TYPE = 7, 1, 4
"""Field numbers of onnx.proto: the model's graph, its nodes, and a node's operator."""
VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5
"""How Protocol Buffers lay out a field's value."""


def renamed(model: bytes, names: Mapping[str, str]) -> bytes:
    """Rename some of a graph's operators in an ONNX model; all other bytes stay as they are."""

    def change(name: bytes) -> bytes:
        return names.get(name.decode(), name.decode()).encode()

    return _edited(model, (GRAPH, NODE, OP_TYPE), change)


def _edited(message: bytes, fields: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """Change the bytes at the end of a path of fields, and the lengths of what holds them."""
    parts, position = [], 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        if tag & 7 != DELIMITED:
            position = _end_of_number(message, position, tag & 7)
            parts.append(message[start:position])
            continue
        length, position = _varint(message, position)
        body = message[position : position + length]
        position += length
        if tag >> 3 != fields[0]:
            parts.append(message[start:position])
            continue
        body = _edited(body, fields[1:], change) if fields[1:] else change(body)
        parts += [_as_varint(tag), _as_varint(len(body)), body]
    return b"".join(parts)


def _end_of_number(message: bytes, position: int, kind: int) -> int:
    if kind == VARINT:
        return _varint(message, position)[1]
    return position + {EIGHT_BYTES: 8, FOUR_BYTES: 4}[kind]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, the lowest first; return it and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _as_varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])

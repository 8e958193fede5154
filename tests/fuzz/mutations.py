"""Seeded damage: to bytes, to what JSON can hold, and to texts."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS = (
    0, -1, 1, 2, 3, 7, 1.5, -0.0, 0.1, 1e9, 1e308, float("inf"), float("nan"), 255, 65536, -(1 << 31), (1 << 31) - 1,
    1 << 31, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30,
)  # fmt: skip
TEXTS = (
    "", "a", "2", "None", "../victim", "../../victim", "/etc/passwd", "/dev/zero", ".", "..", "a/b", "C:\\victim",
    "\x00", "\x1b]52;c;eA==\x07", "\u202e", "\ud800", "é🙂", "a" * 10_000, "{{ 7 ** 7 ** 7 }}", "%s%n", "[" * 2000,
)  # fmt: skip
BYTES = (
    b"\x00",
    b"\xff",
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 3,
    b"[" * 3000,
    b"{",
    b'"',
    b"\xef\xbb\xbf",
    b"\n",
    b"9" * 5000,
)


def any_value(dice: Random) -> Any:
    """A value of any kind, mostly one where programs err."""
    kind = dice.randrange(8)
    if kind < 3:
        return dice.choice(NUMBERS)
    if kind < 5:
        return dice.choice(TEXTS)
    plain: list[Any] = [None, True, False, [], {}, [[]], [0], [None], ["a", 1], {"a": 1}, {"": None}, nested(200)]
    return dice.choice(plain)


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def mutated(dice: Random, value: Any) -> Any:
    """A copy with one to four changes, each somewhere in it."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        value = _changed(dice, value)
    return value


def _changed(dice: Random, value: Any) -> Any:
    """A copy that is another one in one place; the nearer to the root the likelier."""
    if not value or not isinstance(value, dict | list) or dice.random() < 0.1:
        return _other(dice, value)
    if isinstance(value, dict):
        name = dice.choice(list(value))
        roll = dice.random()
        if roll < 0.1:
            return {key: part for key, part in value.items() if key != name}
        if roll < 0.15:
            return {**value, dice.choice((name.upper(), name + "s", *TEXTS)): any_value(dice)}
        if roll < 0.2:
            return {**value, name: value[dice.choice(list(value))]}
        return {**value, name: _changed(dice, value[name])}
    index = dice.randrange(len(value))
    roll = dice.random()
    if roll < 0.1:
        return value[:index] + value[index + 1 :]
    if roll < 0.15:
        return value * dice.choice((0, 2, 50))
    if roll < 0.25:
        return [*value[:index], any_value(dice), *value[index:]]
    return [*value[:index], _changed(dice, value[index]), *value[index + 1 :]]


def _other(dice: Random, value: Any) -> Any:
    if type(value) in (int, float) and dice.random() < 0.5:
        return dice.choice(
            (-value, value + 1, value - 1, value * 2, value * 1_000_003, float(value), str(value), [value])
        )
    if isinstance(value, str) and value and dice.random() < 0.4:
        return mutated_text(dice, value)
    return any_value(dice)


def mutated_text(dice: Random, text: str, words: tuple[str, ...] = TEXTS) -> str:
    """A text with pieces of it left out, doubled, moved, or with other words in it."""
    for _ in range(dice.choice((1, 2, 4))):
        start, end = sorted(dice.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + dice.choice((1, 8, 64)))
        kind = dice.randrange(4)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:end] * dice.choice((1, 2, 40)) + text[end:]
        else:
            text = text[:start] + dice.choice(words) + text[end if kind == 2 else start :]
    return text


def mutated_bytes(dice: Random, data: bytes, reach: int | None = None) -> bytes:
    """Bytes, changed within the first `reach` of them: flipped, replaced, left out, doubled, cut off."""
    for _ in range(dice.choice((1, 1, 2, 8))):
        length = min(len(data), reach or len(data))
        start = dice.randrange(length + 1)
        end = min(length, start + dice.choice((1, 2, 4, 8, 100)))
        kind = dice.randrange(7)
        if kind == 0 and start < length:
            data = data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1 :]
        elif kind == 1:
            data = data[:start] + dice.choice(BYTES) + data[end:]
        elif kind == 2:
            data = data[:start] + dice.randbytes(end - start) + data[end:]
        elif kind == 3:
            data = data[:start] + data[end:]
        elif kind == 4:
            data = data[:end] + data[start:end] + data[end:]
        elif kind == 5:
            number = dice.choice((0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1))
            size = dice.choice((4, 8))
            data = data[:start] + (number & (1 << 8 * size) - 1).to_bytes(size, "little") + data[start + size :]
        elif dice.random() < 0.3:
            data = data[:start]
    return data


def mutated_json(dice: Random, data: bytes) -> bytes:
    """The text of a JSON value: another value, and now and then no JSON."""
    if dice.random() < 0.15:
        return mutated_bytes(dice, data)
    return json.dumps(mutated(dice, json.loads(data))).encode()

"""Mutants that do harm for certain: does the campaign see it?"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random


class Panic(BaseException):
    """As Rust's in Python."""


def raise_value_error() -> None:
    raise ValueError("foreign")


def panic() -> None:
    raise Panic


def read_at_nowhere() -> None:
    ctypes.string_at(0)


def never_end() -> None:
    while True:
        pass


def take_memory() -> None:
    bytearray(b"\1") * (1200 << 20)


def read_outside() -> None:
    Path("/etc/passwd").read_bytes()


class Harm:
    """What a kind is to the worker."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.use = act

    def prepare(self, dice: Random) -> None:
        """Nothing to mutate."""

    def restore(self) -> None:
        """Nothing was changed."""


HARMFUL: dict[str, tuple[str, Callable[[], object]]] = {
    "harm-error": ("foreign", raise_value_error),
    "harm-panic": ("foreign", panic),
    "harm-exit": ("foreign", sys.exit),
    "harm-crash": ("crash", read_at_nowhere),
    "harm-slow": ("slow", never_end),
    "harm-memory": ("memory", take_memory),
    "harm-outside": ("outside", read_outside),
}

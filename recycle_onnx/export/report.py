"""How long work tells what it is at."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Told a stage as it begins, `stage: detail`, or how much of a stage is done."""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """`done` of `total` count anything; a total of 0 says nothing."""


def silent(text: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""

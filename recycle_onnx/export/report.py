"""How long work tells what it is at."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """A callback that is told a stage as it begins, `stage: detail`, or how much of a stage is finished."""

    def __call__(self, text: str, completed: int = 0, total: int = 0) -> None:
        """Report a stage; `completed` of `total` count anything, and a total of 0 says nothing."""


def silent(text: str, completed: int = 0, total: int = 0) -> None:
    """Report nothing."""

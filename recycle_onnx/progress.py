"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and a few words on what is being done."""


def silent(done: int, total: int, what: str) -> None:
    """Nobody listens."""

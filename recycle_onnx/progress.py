"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with how much is finished, how much there is in all, and a few words on what comes now."""


def silent(completed: int, total: int, what: str) -> None:
    """Report nothing."""

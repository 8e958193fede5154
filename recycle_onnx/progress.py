"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with how much is finished, of how much in all, and a few words on what comes now.

The counts are of anything, bytes or steps. A total of 0 says that nobody knows it. Work in stages says `stage`, or
`stage: detail`, as a stage begins and while it lasts.
"""


def silent(completed: int, total: int, what: str) -> None:
    """Report nothing."""

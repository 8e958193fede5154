"""How fast this machine is: limits of time are so many times what a plain loop takes on it."""

from __future__ import annotations

import time


def million_turns() -> float:
    """Return the processor seconds of a million turns of a loop, the slowest of three: 0.03 where limits were set."""
    return max(_seconds() for _ in range(3))


def _seconds() -> float:
    start = time.thread_time()
    for _ in range(10**6):
        pass
    return time.thread_time() - start

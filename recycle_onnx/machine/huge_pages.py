"""Weights in huge pages, on Linux: a step reads all of them, and looking up small pages takes it longer."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread, main_thread
from typing import Literal

State = Literal["on", "off", "not on this system"]
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Has `[never]` where the machine's owner wants none; a kernel without huge pages has no such file."""
HUGE = 2 << 20
"""Bytes of a huge page on x86-64 and most of ARM; with larger ones Linux refuses, and nothing changes."""
PART = 8 * HUGE
"""Bytes that are moved in one call: some 10 to 30 milliseconds, for which an interpreter may have to wait."""
THREAD = "recycle-onnx: huge pages"
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""Advice of madvise(2). The second (Linux 6.1) copies at once what is there; an older one does so in its own time."""

Range = tuple[int, int]
"""Of addresses: the first, and the one behind the last."""
Advise = Callable[[int, int, int], int]


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """Move what is allocated meanwhile into huge pages, where Linux has some; a thread does it afterwards.

    ONNX Runtime allocates each weight by itself, too little to begin a huge page. A step of a model of 135 M parameters
    takes some 15 % less time with them. Moving 180 MB takes some 0.1 to 0.3 seconds, in which the model can be used.
    """
    advise = _madvise() if state() == "on" and not addresses_are_limited() else None
    before = list(_anonymous()) if advise else []
    yield
    if advise and (ranges := list(_new(_anonymous(), before))):
        # No daemon: an interpreter that ends waits for a part, since it must not end within a call.
        with suppress(RuntimeError):  # a process that may start no more threads keeps small pages
            Thread(target=_move, args=(ranges, advise), name=THREAD).start()


def _move(ranges: list[Range], advise: Advise) -> None:
    """Move memory part by part. What was freed meanwhile is refused or somebody else's, and comes to no harm."""
    for low, high in ranges:
        advise(low, high - low, MADV_HUGEPAGE)
        for start in range(low, high, PART):
            if not main_thread().is_alive():
                return
            advise(start, min(PART, high - start), MADV_COLLAPSE)  # may fail for lack of memory: then pages stay small


def state() -> State:
    """Return whether this is Linux with transparent huge pages, and whether its owner has turned them off."""
    if sys.platform != "linux" or not SETTING.exists():
        return "not on this system"
    try:
        return "off" if "[never]" in SETTING.read_text() else "on"
    except OSError:  # a container may hide it
        return "not on this system"


def addresses_are_limited() -> bool:
    """Return whether the process's addresses are limited (`ulimit -v`), so that nobody should start a thread unasked.

    A thread takes some for its stack. One that dies of lack of memory as it starts is waited for without end:
    `Thread.start` waits until the thread has said that it runs.
    """
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _madvise() -> Advise | None:
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None:
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


def _anonymous() -> Iterator[Range]:
    """Return the process's private memory that is of no file, in the order of addresses."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, permissions, _, _, _, *name = line.split(None, 5)
        if permissions == "rw-p" and (not name or name == ["[heap]"]):
            low, high = addresses.split("-")
            yield int(low, 16), int(high, 16)


def _new(now: Iterator[Range], before: list[Range]) -> Iterator[Range]:
    """Return the whole huge pages of `now` of which `before` has nothing; both are in order."""
    for low, high in now:
        start = low
        for old_low, old_high in [old for old in before if old[0] < high and old[1] > low] + [(high, high)]:
            first, last = -(-start // HUGE) * HUGE, min(old_low, high) // HUGE * HUGE
            if last > first:
                yield first, last
            start = max(start, old_high)

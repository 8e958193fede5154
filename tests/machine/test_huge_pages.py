"""Memory that is allocated meanwhile lies in huge pages afterwards, where Linux has some."""

from __future__ import annotations

import mmap
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.machine import huge_pages
from recycle_onnx.machine.huge_pages import HUGE, in_huge_pages, state
from tests.helpers.patience import PATIENCE

SIZE = 16 * HUGE
COLLAPSES = (6, 1)
"""The first Linux that moves pages at once."""


def linux() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


def in_huge(address: int) -> int:
    """Return the bytes of the mapping at `address` that lie in huge pages, as Linux counts them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if addresses := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(addresses[1], 16) <= address < int(addresses[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


def written() -> tuple[mmap.mmap, int]:
    """Return memory of which every page was written, and an address inside."""
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint8)
    array[:] = 7
    return memory, array.ctypes.data + SIZE // 2


def wait() -> None:
    """Wait until all that was allocated is moved."""
    for thread in threading.enumerate():
        if thread.name == huge_pages.THREAD:
            thread.join()


needs_huge_pages = pytest.mark.skipif(
    state() != "on" or linux() < COLLAPSES, reason="needs Linux 6.1 with transparent huge pages"
)


@needs_huge_pages
def test_memory_that_was_allocated_meanwhile_lies_in_huge_pages() -> None:
    with in_huge_pages():
        memory, address = written()
    wait()
    assert in_huge(address) >= SIZE - 2 * HUGE
    assert set(memory[:: HUGE // 2]) == {7}


@needs_huge_pages
def test_what_lay_there_before_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda low, size, _: advised.append((low, low + size)) or 0)
    _, address = written()
    with in_huge_pages():
        _, other = written()
    wait()
    assert any(low <= other < high for low, high in advised)
    assert not any(low <= address < high for low, high in advised)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("always madvise [never]", "off"), (None, "not on this system")],
    ids=["turned off", "not there"],
)
def test_a_machine_without_them_is_left_alone(
    setting: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "enabled")
    if setting:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: pytest.fail("asked for huge pages"))
    with in_huge_pages():
        pass
    if sys.platform == "linux":
        assert state() == expected


@needs_huge_pages
def test_a_process_of_limited_addresses_keeps_small_pages() -> None:
    program = f"""
import mmap, resource, threading
from recycle_onnx.machine.huge_pages import in_huge_pages
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
threading.Thread.start = lambda thread: print("a thread")
with in_huge_pages():
    memory = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print("went on")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert ended.stdout == "went on\n"
    unlimited = program.replace("2 << 30", "-1")
    assert subprocess.check_output([sys.executable, "-c", unlimited], text=True).startswith("a thread")


@needs_huge_pages
def test_a_process_that_may_start_no_thread_keeps_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with in_huge_pages():
        memory, _ = written()
    assert memory[0] == 7


def test_ranges_are_whole_huge_pages_that_nothing_lay_in() -> None:
    now = [(HUGE // 2, 9 * HUGE), (20 * HUGE, 20 * HUGE + HUGE // 2)]
    before = [(3 * HUGE + 1, 4 * HUGE), (6 * HUGE, 6 * HUGE + 1)]
    assert list(huge_pages._new(iter(now), before)) == [(HUGE, 3 * HUGE), (4 * HUGE, 6 * HUGE), (7 * HUGE, 9 * HUGE)]
    assert list(huge_pages._new(iter(now), now)) == []


@needs_huge_pages
def test_a_program_may_end_meanwhile() -> None:
    program = """
import mmap
from recycle_onnx.machine.huge_pages import in_huge_pages
with in_huge_pages():
    memory = mmap.mmap(-1, 512 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: 4096] = bytes(len(memory) // 4096)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")

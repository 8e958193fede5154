"""How fast this machine reads memory: what decoding waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BYTES = 256 << 20
"""Read at least: the caches of most processors hold less."""
BYTES_A_THREAD = 64 << 20
"""Cores have caches of their own, so more threads need more."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Linux lists the caches' sizes here; elsewhere `BYTES` is taken for more than they hold."""
SLICE = 32 << 20
"""Bytes of a round: a millisecond or two, shorter than a time slice of the system."""
ROUNDS = 100
"""The best of so many counts: on a busy machine most rounds share the memory with others."""

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Bandwidth:
    """The GB/s (10⁹ bytes) read by one thread, and by `threads` at once."""

    one_thread_gb_s: float
    all_threads_gb_s: float
    threads: int


def measure(threads: int, free_bytes: int | None = None) -> Bandwidth:
    """Read more than caches hold again and again, for about a second; never more than half of the free memory."""
    size = beyond_caches(threads)
    if free_bytes is not None:
        size = min(size, free_bytes // 2)
    data = np.ones(size // 8, np.uint64)
    alone = read(data, 1)
    return Bandwidth(alone, read(data, threads) if threads > 1 else alone, threads)


def read(data: Words, threads: int) -> float:
    """Measure the GB/s at which `threads` read `data`, a part of it each: the best of many rounds.

    Adding up 64-bit words takes a processor less time than the memory needs to bring them, and numpy adds without
    Python's lock. A round is shorter than a time slice: on a busy machine some have their processors to themselves.
    """
    parts = [_slices(part) for part in np.array_split(data, threads)]
    with ThreadPoolExecutor(threads) as pool:
        return max(_round(pool, [next(slices) for slices in parts]) for _ in range(ROUNDS))


def beyond_caches(threads: int) -> int:
    """Return more bytes than caches hold: 256 MiB, 64 MiB a thread, or four times the largest cache."""
    sizes = [path.read_text(encoding="utf-8").strip() for path in CACHES.glob("index*/size")]
    caches = [1024 * int(size[:-1]) for size in sizes if size.endswith("K")]
    return max(BYTES, BYTES_A_THREAD * threads, 4 * max(caches, default=0))


def _slices(part: Words) -> Iterator[Words]:
    return cycle(np.array_split(part, max(1, part.nbytes // SLICE)))


def _round(pool: ThreadPoolExecutor, slices: list[Words]) -> float:
    """Measure one round, from the first thread's start to the last one's end."""
    starts, ends = zip(*pool.map(_add, slices), strict=True)
    seconds: float = max(ends) - min(starts)
    return sum(words.nbytes for words in slices) / seconds / 1e9


def _add(words: Words) -> tuple[float, float]:
    started = time.perf_counter()
    np.add.reduce(words)
    return started, time.perf_counter()

"""How fast this machine reads memory: what decoding waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BYTES = 256 << 20
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CHUNK = 4 << 20
ROUNDS = 8
SECONDS = 0.05

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (10⁹ bytes) read by one thread, and by `threads` at once."""

    one_thread_gb_s: float
    all_threads_gb_s: float
    threads: int


def measure(threads: int, free_bytes: int | None = None) -> Bandwidth:
    """Read more than caches hold again and again, for about a second; never more than half of the free memory."""
    size = beyond_caches() if free_bytes is None else min(beyond_caches(), free_bytes // 2)
    data = np.ones(max(size, CHUNK) // 8, np.uint64)
    alone = read(data, 1)
    return Bandwidth(alone, read(data, threads) if threads > 1 else alone, threads)


def read(data: Words, threads: int) -> float:
    """GB/s at which `threads` read `data`, a part of it each: the best of a few rounds.

    Adding up 64-bit words takes a processor less time than the memory needs to bring them, and numpy adds without
    Python's lock. Rounds have a length in time, so that what else runs on the machine ends none of them early.
    """
    parts = [_pieces(part) for part in np.array_split(data, threads)]
    with ThreadPoolExecutor(threads) as pool:
        return max(_round(pool, parts) for _ in range(ROUNDS))


def beyond_caches() -> int:
    """256 MiB, or four times the largest cache."""
    sizes = [path.read_text(encoding="utf-8").strip() for path in CACHES.glob("index*/size")]
    return max(BYTES, *(4 * 1024 * int(size[:-1]) for size in sizes if size.endswith("K")), 0)


def _pieces(part: Words) -> Iterator[Words]:
    return cycle(np.array_split(part, max(1, part.nbytes // CHUNK)))


def _round(pool: ThreadPoolExecutor, parts: list[Iterator[Words]]) -> float:
    started = time.perf_counter()
    found = list(pool.map(partial(_read_until, started + SECONDS), parts))
    return sum(count for count, _ in found) / (max(end for _, end in found) - started) / 1e9


def _read_until(deadline: float, pieces: Iterator[Words]) -> tuple[int, float]:
    """Bytes read, and when the last of them was."""
    count, now = 0, 0.0
    while now < deadline:
        piece = next(pieces)
        np.add.reduce(piece)
        count += piece.nbytes
        now = time.perf_counter()
    return count, now

"""What the machine is, and how fast it reads memory: the limit of decoding."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from recycle_onnx import processor

READ_BYTES = 512 << 20
READS = 5


@dataclass(frozen=True)
class Machine:
    """Processor, threads a session uses by default, ONNX Runtime, and GB/s read with all processors at once."""

    cpu: str
    threads: int
    onnxruntime: str
    read_bandwidth_gb_s: float


def describe() -> Machine:
    """Describe this machine; measures its read bandwidth for about a second."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(processor.name(), processors, ort.__version__, read_bandwidth(processors))


def read_bandwidth(threads: int) -> float:
    """GB/s: the best of a few passes over more memory than caches hold, `threads` parts at once."""
    parts = np.array_split(np.ones(READ_BYTES // 8, np.uint64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - started)
    return READ_BYTES / best / 1e9


def peak_rss_bytes() -> int | None:
    """Most memory this process has held so far; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

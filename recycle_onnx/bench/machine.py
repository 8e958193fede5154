"""What the machine is, and how fast it reads memory: the limit of decoding."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import onnxruntime as ort

from recycle_onnx.machine import bandwidth, processor, processors


@dataclass(frozen=True)
class BenchMachine:
    """The processor, the processors this process may use, ONNX Runtime, and GB/s read with all at once."""

    cpu: str
    threads: int
    onnxruntime: str
    read_bandwidth_gb_s: float


def describe() -> BenchMachine:
    """Describe this machine; measure its read bandwidth for about a second."""
    threads = processors.allowed()
    return BenchMachine(processor.name(), threads, ort.__version__, bandwidth.measure(threads).all_threads_gb_s)


def peak_rss_bytes() -> int | None:
    """Return the most memory this process has held so far; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

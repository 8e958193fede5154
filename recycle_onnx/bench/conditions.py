"""What a measurement was made on: speeds mean little without it."""

from __future__ import annotations

from dataclasses import dataclass

import onnxruntime as ort

from recycle_onnx.machine import bandwidth
from recycle_onnx.machine.machine import Machine


@dataclass(frozen=True)
class Conditions:
    """Processor, processors this process may use, ONNX Runtime, and GB/s read with all of them at once."""

    cpu: str
    threads: int
    onnxruntime: str
    read_bandwidth_gb_s: float

    @classmethod
    def here(cls) -> Conditions:
        """Describe this machine; measures for about a second how fast it reads memory, the limit of decoding."""
        machine = Machine.this()
        threads = machine.processors.allowed
        return cls(machine.processor, threads, ort.__version__, bandwidth.measure(threads).all_threads_gb_s)

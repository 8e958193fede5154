"""What this machine is, and what of it this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recycle_onnx import processor
from recycle_onnx.doctor import cgroup, instructions, memory, processors
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.doctor.memory import Memory
from recycle_onnx.doctor.processors import Processors


@dataclass(frozen=True)
class Machine:
    """The processor's name and instruction sets, cores, and memory."""

    processor: str
    instructions: list[str]
    processors: Processors
    memory: Memory


def find() -> Machine:
    """Ask the platform."""
    limits = cgroup.limits()
    return Machine(processor.name(), instructions.names(), processors.find(limits), memory.find(limits))


def findings(found: Machine, threads: int | None) -> Iterator[Finding]:
    """What keeps a session from the speed that the machine could give."""
    yield from processors.findings(found.processors, threads)
    sets = found.instructions
    if sets and not {"AVX2", "NEON"} & set(sets):
        yield Finding(
            "advice",
            f"{found.processor} has neither AVX2 nor NEON",
            "ONNX Runtime's fast kernels for quantized weights need one of them",
            "use a float32 bundle here, or another machine",
        )

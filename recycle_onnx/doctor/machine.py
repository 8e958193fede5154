"""What this machine is, and what of it this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recycle_onnx.doctor.finding import Finding
from recycle_onnx.machine import cgroup, instructions, memory, processor, processors
from recycle_onnx.machine.memory import SystemMemory
from recycle_onnx.machine.processors import Processors


@dataclass(frozen=True)
class Machine:
    """The processor's name and instruction sets, cores, and memory."""

    processor: str
    instructions: list[str]
    processors: Processors
    memory: SystemMemory

    @property
    def training_precision(self) -> str:
        """What `train` computes a frozen base in on this processor; it measures before it begins."""
        bf16 = {"AVX512-BF16", "AMX-BF16", "NEON BF16"} & set(self.instructions)
        return "bfloat16, up to ten times as fast here as float32" if bf16 else "float32"


def find() -> Machine:
    """Gather what the platform tells of this machine."""
    limits = cgroup.limits()
    return Machine(processor.name(), instructions.names(), processors.find(limits), memory.find(limits))


def findings(machine: Machine, threads: int | None) -> Iterator[Finding]:
    """Yield what keeps a session from the speed that the machine could give."""
    yield from thread_findings(machine.processors, threads)
    sets = machine.instructions
    if sets and not {"AVX2", "NEON"} & set(sets):
        yield Finding(
            "advice",
            f"{machine.processor} has neither AVX2 nor NEON",
            "ONNX Runtime's fast kernels for quantized weights need one of them",
            "use a float32 bundle here, or another machine",
        )


def thread_findings(processors: Processors, threads: int | None) -> Iterator[Finding]:
    """Yield a finding where a session has more threads than processors for them."""
    wanted, useful = processors.session_threads(threads), processors.useful_threads
    if wanted <= useful:
        return
    limit = (
        f"may use {processors.allowed} processors" if processors.allowed <= useful else f"has {useful} processors' time"
    )
    yield Finding(
        "advice",
        f"a session has {wanted} threads, and this process {limit.replace('1 processors', '1 processor')}",
        "threads that wait for a processor hold up the others in every operator",
        f"--threads {useful}, or load(…, threads={useful})",
    )

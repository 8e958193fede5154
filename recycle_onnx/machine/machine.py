"""What this machine is, and what of it this process may use."""

from __future__ import annotations

from dataclasses import dataclass

from recycle_onnx.machine import cgroup, huge_pages, instructions, memory, processor, processors
from recycle_onnx.machine.memory import SystemMemory
from recycle_onnx.machine.processors import Processors


@dataclass(frozen=True)
class Machine:
    """The processor's name and instruction sets, cores, memory, and whether weights can lie in huge pages."""

    processor: str
    instructions: list[str]
    processors: Processors
    memory: SystemMemory
    huge_pages: huge_pages.State

    @classmethod
    def this(cls) -> Machine:
        """Ask the platform."""
        limits = cgroup.limits()
        return cls(
            processor.name(), instructions.names(), processors.find(limits), memory.find(limits), huge_pages.state()
        )

    @property
    def training_precision(self) -> str:
        """What `train` computes a frozen base in on this processor; it measures before it begins."""
        bf16 = {"AVX512-BF16", "AMX-BF16", "NEON BF16"} & set(self.instructions)
        return "bfloat16, up to ten times as fast here as float32" if bf16 else "float32"

"""How many processors there are, and how many of them this process may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import floor

from recycle_onnx.machine.cgroup import CgroupLimits


@dataclass(frozen=True)
class Processors:
    """The numbers of physical cores (None if unknown), logical processors, allowed ones, and a quota of time."""

    physical: int | None
    logical: int
    allowed: int
    quota: float | None

    @property
    def useful_threads(self) -> int:
        """Threads of a session that each have a processor of their own."""
        cores = min(self.allowed, self.physical or self.allowed)
        return cores if self.quota is None else max(1, min(cores, floor(self.quota)))

    def session_threads(self, threads: int | None) -> int:
        """Return a session's threads: by ONNX Runtime's default one a physical core, whatever is allowed."""
        return threads or self.physical or self.allowed


def find(limits: CgroupLimits) -> Processors:
    """Gather what the platform tells of processors."""
    import psutil  # here: to load a bundle and generate needs none of it

    return Processors(psutil.cpu_count(logical=False), os.cpu_count() or 1, allowed(), limits.processors)


def allowed() -> int:
    """Count the logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

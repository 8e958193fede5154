"""How much memory there is, and how much of it this process can have."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from recycle_onnx.machine.cgroup import CgroupLimits


@dataclass(frozen=True)
class SystemMemory:
    """The bytes of the machine, available now, and allowed by a control group; None if unknown."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    limit_left_bytes: int | None

    @property
    def most_bytes(self) -> int | None:
        """What this process could have if it were alone."""
        return _least(self.total_bytes, self.limit_bytes)

    @property
    def free_bytes(self) -> int | None:
        """What this process can have now."""
        return _least(self.available_bytes, self.limit_left_bytes)


def find(limits: CgroupLimits) -> SystemMemory:
    """Gather what the platform tells of memory."""
    import psutil  # here: to load a bundle and generate needs none of it

    memory = psutil.virtual_memory()
    return SystemMemory(memory.total, memory.available, limits.memory_bytes, limits.memory_left_bytes)


def rss_bytes() -> int:
    """Count the memory that this process holds now."""
    import psutil  # here: to load a bundle and generate needs none of it

    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int | None:
    """Most memory this process has held so far; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)

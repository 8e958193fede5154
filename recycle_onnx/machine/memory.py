"""How much memory there is, and how much of it this process can have."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.machine.cgroup import Limits

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine, available to programs now, and the most that a control group allows; None if unknown."""

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


def find(limits: Limits) -> Memory:
    """Ask the platform."""
    ask = {"linux": _linux, "darwin": _macos, "win32": _windows}.get(sys.platform)
    total, available = ask() if ask else (None, None)
    return Memory(total, available, limits.memory_bytes, limits.memory_left_bytes)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _linux() -> tuple[int | None, int | None]:
    found = {name: 1024 * int(kib) for name, kib in re.findall(r"(\w+): +(\d+) kB", MEMINFO.read_text())}
    return found.get("MemTotal"), found.get("MemAvailable")


def _macos() -> tuple[int | None, int | None]:
    total = subprocess.run(["/usr/sbin/sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=False)
    pages = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=False).stdout
    size = re.search(r"page size of (\d+)", pages)
    counts = dict(re.findall(r"Pages (free|inactive|speculative): +(\d+)", pages))
    available = sum(map(int, counts.values())) * int(size[1]) if size and counts else None
    return int(total.stdout) if total.stdout.strip().isdigit() else None, available


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h; its later fields are not read."""

    _fields_ = (
        *((name, ctypes.c_ulong) for name in ("length", "load")),
        *((name, ctypes.c_ulonglong) for name in ("total", "available")),
        ("others", 5 * ctypes.c_ulonglong),
    )


def _windows() -> tuple[int | None, int | None]:
    if sys.platform != "win32":
        return None, None
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.total), int(status.available)

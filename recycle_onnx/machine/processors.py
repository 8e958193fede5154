"""How many processors there are, and how many of them this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from math import floor
from pathlib import Path

from recycle_onnx.machine.cgroup import Limits

TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Processors:
    """Physical cores (None if unknown), logical processors, those this process may use, and a quota of their time."""

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
        """Threads that a session has: ONNX Runtime's default is one a physical core, whatever is allowed."""
        return threads or self.physical or self.allowed


def find(limits: Limits) -> Processors:
    """Ask the platform."""
    return Processors(_physical(), os.cpu_count() or 1, allowed(), limits.processors)


def allowed() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _physical() -> int | None:
    if sys.platform == "darwin":
        return _number_of(["/usr/sbin/sysctl", "-n", "hw.physicalcpu"])
    if sys.platform == "win32":
        command = "(Get-CimInstance Win32_Processor | Measure-Object NumberOfCores -Sum).Sum"
        return _number_of(["powershell", "-NoProfile", "-Command", command])
    files = [path / "topology" for path in TOPOLOGY.glob("cpu[0-9]*")]
    cores = {tuple(_read(path / name) for name in ("physical_package_id", "core_id")) for path in files}
    return len(cores - {(None, None)}) or None


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _number_of(command: list[str]) -> int | None:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return None
    return int(found) if found.isdigit() else None

"""Which processor this is: what is measured or laid out for one does not fit another."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
NAMES = ("model name", "Model")
"""Fields of /proc/cpuinfo on x86 and on Arm."""
INSTRUCTIONS = ("flags", "Features")


def name() -> str:
    """Return the processor's name."""
    return _first(NAMES) or platform.processor() or platform.machine()


def identity() -> str:
    """Return the processor's name and, where the platform tells, a hash of its instruction sets."""
    instructions = hashlib.sha256(_first(INSTRUCTIONS).encode()).hexdigest()[:12]
    return f"{name()}, {platform.machine()}, {instructions}"


def flags() -> frozenset[str]:
    """Return the processor's instruction sets as Linux names them; empty elsewhere."""
    return frozenset(_first(INSTRUCTIONS).split())


def _first(keys: tuple[str, ...]) -> str:
    if not CPUINFO.exists():
        return ""
    for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""

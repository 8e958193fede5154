"""What one attempt took and touched: processor time, memory, and paths outside its folder. Linux only."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENTS = frozenset(
    {
        "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
        "os.listdir", "os.scandir", "shutil.rmtree", "shutil.copyfile", "shutil.copytree",
    }
)  # fmt: skip
SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/etc/", "/usr/")
"""What libraries and the interpreter itself may look at."""
NOT_SYSTEM = ("/etc/passwd",)
"""What a mutant names, and no library of ours needs."""
HEADROOM = 6 << 30
"""Bytes of addresses that this process may take beyond what it has: a mutant may not take the machine."""


@dataclass
class Measured:
    """Of one attempt."""

    seconds: float = 0.0
    memory: int = 0
    paths: list[str] = field(default_factory=list)


class Watch:
    """Looks at what this process opens, in Python; `place` is where an attempt may read and write."""

    def __init__(self, place: Path) -> None:
        code = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *sys.path]
        self._allowed = tuple(os.path.realpath(path) for path in (place, *filter(None, code)))
        self._outside: list[str] | None = None
        self._place = place
        sys.addaudithook(self._hook)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, size + HEADROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    @contextmanager
    def attempt(self) -> Iterator[Measured]:
        """Measure what happens meanwhile."""
        measured, beside = Measured(), self._beside()
        Path("/proc/self/clear_refs").write_text("5")  # the highest use begins anew
        before, started = _memory("VmRSS"), time.process_time()
        self._outside = measured.paths
        try:
            yield measured
        finally:
            self._outside = None
            measured.seconds = time.process_time() - started
            measured.memory = _memory("VmHWM") - before
            measured.paths += [f"changed beside it: {name}" for name, _ in self._beside() ^ beside]

    def _beside(self) -> set[tuple[str, int]]:
        """What lies beside the place, and when it was changed: written by whatever library."""
        return {(e.name, e.stat().st_mtime_ns) for e in os.scandir(self._place.parent) if e.path != str(self._place)}

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._outside is None or event not in EVENTS:
            return
        for name in arguments[:2] if event in ("os.rename", "os.link", "shutil.copyfile") else arguments[:1]:
            if isinstance(name, str | bytes | os.PathLike):
                path = os.path.realpath(os.fsdecode(name))
                system = path.startswith(SYSTEM) and path not in NOT_SYSTEM
                if not (system or any(path == root or path.startswith(f"{root}/") for root in self._allowed)):
                    self._outside.append(f"{event} {path}")


def _memory(name: str) -> int:
    """Bytes, of the line with that name."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise AssertionError(name)

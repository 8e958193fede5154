"""What a container or a service may use: Linux control groups, version 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups, and where a process finds its own."""
OWN_GROUPS = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Version 1 writes the largest page-aligned number where there is no limit."""


@dataclass(frozen=True)
class CgroupLimits:
    """The most bytes of memory, how many of them are left, and processors' worth of time; None where unlimited."""

    memory_bytes: int | None = None
    memory_left_bytes: int | None = None
    processors: float | None = None


def limits(own_groups: Path = OWN_GROUPS, mount: Path = MOUNT) -> CgroupLimits:
    """Return the tightest limits of this process's groups and of those around them."""
    if not own_groups.exists():
        return CgroupLimits()
    folders = list(_folders(own_groups.read_text(encoding="utf-8"), mount))
    memory = [used_and_limit for folder in folders if (used_and_limit := _memory(folder))]
    quotas = [quota for folder in folders if (quota := _quota(folder)) is not None]
    return CgroupLimits(
        min((limit for limit, _ in memory), default=None),
        min((max(0, limit - used) for limit, used in memory), default=None),
        min(quotas, default=None),
    )


def _folders(groups: str, mount: Path) -> Iterator[Path]:
    """Yield folders of memory and cpu groups, each with those around it; in a container some are out of sight."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        top = mount / controllers if controllers else mount
        if controllers and not {"memory", "cpu"} & set(controllers.split(",")):
            continue
        folder = top / path.strip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _memory(folder: Path) -> tuple[int, int] | None:
    """Limit and bytes in use that cannot be taken back, None without a limit."""
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    if limit is None or limit >= UNLIMITED:
        return None
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    return limit, max(0, used - _cached_files(folder / "memory.stat"))


def _cached_files(path: Path) -> int:
    lines = _text(path).splitlines()
    counters = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    return counters.get("total_inactive_file", counters.get("inactive_file", 0))


def _quota(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit()):  # "max" and "-1" are no limit
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

"""How large a core's second-level cache is: ONNX Runtime cuts its work to fit there."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Linux lists the caches here."""


@cache
def size() -> int | None:
    """Return its bytes; None where the platform does not tell."""
    for folder in sorted(CACHES.glob("index*")):
        with suppress(OSError, ValueError):
            if _read(folder / "level") == "2":
                kilobytes = _read(folder / "size").removesuffix("K")
                return 1024 * int(kilobytes)
    return None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()

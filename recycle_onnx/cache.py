"""The user's cache: what was measured or checked on this machine, and may be thrown away at any time."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256, write_json

LIMIT = 1000
"""Files that are remembered, the latest ones, so that the list stays small."""
logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return `RECYCLE_ONNX_CACHE` if set, otherwise the platform's place for caches.

    These are the folders of platformdirs, which is not used: it would be one more package in the plain install, whose
    parts are few on purpose, for five lines that do not change.

    A user without a home has none: the folder is then one that can be neither read nor written, which is no error
    for a cache.
    """
    try:
        return _cache_folder()
    except RuntimeError:
        return Path(os.devnull) / "recycle-onnx"


def _cache_folder() -> Path:
    if path := os.environ.get("RECYCLE_ONNX_CACHE"):
        return Path(path)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "recycle-onnx"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recycle-onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recycle-onnx"


class VerifiedFiles:
    """The files whose SHA-256 is known, by path, size, times of modification and change, and inode."""

    def __init__(self, path: Path, known: dict[str, str]) -> None:
        self._path, self._known, self._changed = path, known, False

    @classmethod
    def load(cls) -> VerifiedFiles:
        """Read the list; a missing or damaged one is an empty one."""
        path = cache_folder() / "verified.json"
        return cls(path, read_cached(path) or {})

    def knows(self, path: Path, sha256: str) -> bool:
        """Tell whether this very file was seen to have this hash."""
        return self._known.get(_identity(path)) == sha256

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, which is read unless this very file was seen before."""
        identity = _identity(path)
        if identity not in self._known:
            self._known[identity], self._changed = sha256(path), True
        return self._known[identity]

    def remember(self, path: Path, sha256: str) -> None:
        """Note that the file was found to have this hash."""
        self._known[_identity(path)] = sha256
        self._changed = True

    def save(self) -> None:
        """Write the list if it changed; a cache that cannot be written is no error."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, dict(list(self._known.items())[-LIMIT:]))
        except OSError:
            return


def read_cached(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file of the cache; None without one, and with a warning where it is damaged."""
    try:
        if os.path.lexists(path):
            return read_json(path)
    except InputError as error:
        logger.warning("ignored, a damaged file of the cache: %s", error)
    return None


def make_room(files: Iterable[Path], needed: int, limit: float, keep: Collection[Path] = ()) -> bool:
    """Remove files, those first that were used longest ago, until `needed` more bytes fit into `limit`.

    Those to `keep` stay, so that the answer may be no: tell whether there is room. When a file was used is what its
    time of modification says.
    """
    by_age = sorted(_stated(files), key=lambda file: file[1].st_mtime_ns)
    held = sum(status.st_size for _, status in by_age)
    for path, status in by_age:
        if held + needed <= limit:
            break
        if path not in keep:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                held -= status.st_size
    return held + needed <= limit


def _stated(files: Iterable[Path]) -> Iterable[tuple[Path, os.stat_result]]:
    """Yield each file with what the system says of it; one that another process has removed is none."""
    for path in files:
        with suppress(OSError):
            yield path, path.stat()


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"

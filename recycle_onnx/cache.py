"""The user's cache: what was measured or checked on this machine, and may be thrown away at any time."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from recycle_onnx.files import write_json

LIMIT = 1000


def cache_folder() -> Path:
    """`RECYCLE_ONNX_CACHE` if set, otherwise the platform's place for caches."""
    if path := os.environ.get("RECYCLE_ONNX_CACHE"):
        return Path(path)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "recycle-onnx"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recycle-onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recycle-onnx"


class VerifiedFiles:
    """Files whose SHA-256 is known, by path, size, modification time and inode."""

    def __init__(self, path: Path, known: dict[str, str]) -> None:
        self._path, self._known, self._changed = path, known, False

    @classmethod
    def load(cls) -> VerifiedFiles:
        """Read the list; a missing or damaged one is an empty one."""
        path = cache_folder() / "verified.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        return cls(path, known if isinstance(known, dict) else {})

    def knows(self, path: Path, sha256: str) -> bool:
        """Whether this very file was found to have this hash."""
        return self._known.get(_identity(path)) == sha256

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


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"

"""Temporary siblings of what is being written: locked while their process lives, swept by the next when it was killed.

A lock on the file or folder itself ends with its process, whatever ended that; process ids are given to others.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".tmp"
"""What a killed process leaves has it; the next one with the same target clears it away."""
BEYOND = 1 << 62
"""The byte that is locked on Windows, where nobody can read a locked one: behind all content."""


def lock(handle: int) -> bool:
    """Lock an open file (or on POSIX a folder) until it is closed; False where another one has it.

    Raises:
        OSError: the file system knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_END)
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def temporary_file(target: Path, *, private: bool = False) -> Iterator[tuple[Path, IO[bytes]]]:
    """Give a new file beside `target`, with the rights that the umask leaves, or for its owner alone; then remove it.

    Raises:
        OSError: it cannot be written there.
    """
    sweep(target)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    while True:
        path = _name(target)
        handle = os.open(path, flags, 0o600 if private else 0o666)
        if _holds(path, handle):
            break
        os.close(handle)
    file = os.fdopen(handle, "wb")
    try:
        yield path, file
    finally:
        with suppress(OSError):  # of a full disk, which was told already
            file.close()
        path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, with the rights that the umask leaves, and remove it afterwards.

    Raises:
        OSError: it cannot be made there.
    """
    sweep(target)
    while True:
        path = _name(target)
        path.mkdir()
        handle = _opened(path)
        if handle is None or _holds(path, handle):
            break
        os.close(handle)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(target: Path) -> None:
    """Remove what processes that were killed left beside `target`."""
    _sweep(target.parent.glob(f".{glob.escape(target.name)}.*{SUFFIX}"))


def sweep_folder(folder: Path) -> None:
    """Remove what processes that were killed left in a folder, whatever its target was."""
    _sweep(folder.glob(f".*{SUFFIX}"))


def _sweep(leftovers: Iterable[Path]) -> None:
    for path in leftovers:
        with suppress(OSError):
            handle = _opened(path)
            if handle is None:
                continue
            try:
                if not lock(handle):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(handle)


def _name(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}{SUFFIX}"


def _opened(path: Path) -> int | None:
    """Return the open file or folder; None for what Windows does not open, a folder or another's file."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        return os.open(path, flags)
    except PermissionError:
        return None


def _holds(path: Path, handle: int) -> bool:
    """Lock what was just made; False where a sweep was faster, which took it for left behind."""
    try:
        locked = lock(handle)
    except OSError:  # no locks here, and so no sweeps
        return True
    try:
        return locked and os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False

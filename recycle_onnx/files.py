"""Files and folders, written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.temporary import temporary_file, temporary_folder
from recycle_onnx.untrusted import open_regular, parse_json, read_bytes


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a byte order mark before it is left out.

    Raises:
        InputError: the file is missing, is not a regular one, or does not hold a JSON object.
    """
    try:
        value = parse_json(read_bytes(path).decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """Read a UTF-8 text file that the user named, which may be a pipe; a byte order mark before it is left out.

    Raises:
        InputError: the file is missing or is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, replacing the file in one step."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Halves of characters, which names of files and JSON's escapes can hold, have no UTF-8: they stay escapes.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, *pieces: bytes | memoryview, private: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; if `private`, its owner alone.

    Raises:
        OSError: it cannot be written, or what is there is a device or a pipe, whose place a file would take.
    """
    write_pieces(path, pieces, private=private)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], *, private: bool = False) -> None:
    """Write a file as `write_bytes` does, of pieces that are made while it is written."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a name with a null byte")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "what is there is not a regular file")
    with temporary_file(path, private=private) as (temporary, file):
        file.writelines(pieces)
        file.close()
        temporary.replace(path)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a regular file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(target: Path, *, force: bool = False, keep: Sequence[Path] = ()) -> None:
    """Refuse before any work begins where `new_folder` would.

    Raises:
        InputError: `target` exists and `force` is false, is not a folder, or holds something to `keep`.
    """
    if not target.exists():
        return
    if not force:
        raise InputError(f"{target} exists; give another name, or --force to replace it")
    if not target.is_dir():
        raise InputError(f"{target} is a file; expected a folder to replace")
    for path in keep:
        if path.resolve().is_relative_to(target.resolve()):
            raise InputError(f"{target} holds {path}, which replacing it would delete; give another name")


def users_folders() -> list[Path]:
    """Return the current and the home folder, as far as they are known: no command may replace them."""
    folders = []
    for find in (Path.cwd, Path.home):
        with suppress(OSError, RuntimeError):
            folders.append(find())
    return folders


@contextmanager
def new_folder(target: Path, *, force: bool = False, keep: Sequence[Path] = ()) -> Iterator[Path]:
    """Give a temporary sibling of `target` to fill; rename it to `target` when the block ends well.

    Whatever goes wrong, Ctrl-C included, the temporary folder is removed and `target` is left as it was.

    Raises:
        InputError: `target` exists and `force` is false (also if another process made it in the meantime), is not a
            folder, or holds something to `keep`.
        RecycleError: the parent cannot be written to, or the disk is full.
    """
    target = Path.cwd() / target  # not resolved: a link stays what the user named
    check_target(target, force=force, keep=keep)
    with temporary_sibling(target) as temporary:
        yield temporary
        _make_readable(temporary)
        _replace_folder(temporary, target, force)


@contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, and remove it afterwards, whatever happens.

    Raises:
        RecycleError: the parent cannot be written to, or the disk is full.
    """
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(temporary_folder(target))
        except OSError as error:
            raise RecycleError(f"{target.parent}: cannot write there ({error.strerror})") from error
        try:
            yield temporary
        except OSError as error:
            told = f"{target}: cannot write ({error.strerror or error}); nothing was left behind"
            raise RecycleError(told) from error


def _make_readable(folder: Path) -> None:
    """Undo the private permissions that safetensors' files are made with: what the umask left the folder is right."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _replace_folder(temporary: Path, target: Path, force: bool) -> None:
    if not target.exists():
        try:
            temporary.rename(target)
            return
        except OSError:
            if not target.exists():
                raise
    if not force:
        raise InputError(f"{target} was made by another process in the meantime; give another name, or --force")
    if _exchange(temporary, target):
        return  # whoever gave the temporary folder removes it, now with the old content
    old = temporary.with_suffix(".old")  # never swept: after a kill between the renames it is all there is
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change names in one step, so that a kill finds one or the other; False where Linux is too old.

    (On other systems there is a moment between two renames.)
    """
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0

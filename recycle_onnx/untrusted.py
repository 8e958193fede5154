"""What a file from a stranger may be, and how its words are shown: a name, a link and a text are data, never obeyed.

Folders are downloaded, unpacked and passed on. A name in one may say `../../.bashrc`, a link may lead to `/dev/zero`,
a text may hold the codes that drive a terminal. Whoever opens, copies or shows something of such a folder asks here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError

MOST_BYTES = 32 << 20
"""Of a JSON or text file that is held in memory: twice the largest index of shards or tokenizer config that we know."""
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
"""What a path may be instead of a file; an open pipe would wait for a writer for ever."""
CHECKED_WHEN_READ = (".safetensors",)
"""Files that nobody copies unread: whatever a link to another place leads to, it is weights or it is refused."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""A clone without git-lfs has such texts in place of weights: the error says so."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Names of files in a manifest: no separators, no leading dot, nothing that another system reads otherwise."""
CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Characters that drive a terminal: they could clear the screen, or set the clipboard."""
TURNING = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""Characters that turn the direction of the text behind them, and so change what a line seems to say."""
HALVES = dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")
"""Halves of characters, which JSON can hold and no terminal can be sent."""

UNPRINTABLE = {**CONTROL, **TURNING, **HALVES}


def printable(text: str) -> str:
    """Return the text without the characters that drive a terminal or cannot be written to one."""
    return text.translate(UNPRINTABLE)


def is_plain_name(name: object) -> bool:
    """Tell whether it names a file in this very folder: letters, digits, `.`, `_` and `-`, and not hidden."""
    return isinstance(name, str) and PLAIN_NAME.fullmatch(name) is not None


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to be read; anything else that answers to a name could be waited for, or read, for ever.

    Raises:
        FileNotFoundError: there is none.
        InputError: a folder, a pipe, a device, a loop of links, what Git LFS left in the place of a file, or it may
            not be read.
    """
    try:
        # without O_NONBLOCK a pipe is waited for before anyone can look at what it is
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read ({getattr(error, 'strerror', None) or error})") from error
    try:
        _refuse_special(path, os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    file = os.fdopen(handle, "rb")
    if file.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
        file.close()
        raise InputError(f"{path}: a Git LFS pointer, not the file itself; fetch that: git lfs pull")
    return file


def check_regular(path: Path) -> None:
    """Refuse what `open_regular` would refuse, for a library that opens the file itself.

    Raises:
        InputError: as there; a file that is missing is no error.
    """
    try:
        open_regular(path).close()
    except FileNotFoundError:
        return


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for test, name in KINDS if test(mode)), "a device")
        raise InputError(f"{path}: {what}; expected a regular file")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read the content of a regular file.

    Raises:
        FileNotFoundError: there is none.
        InputError: not a regular file, or one of more than `most` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path}: more than {most:,} bytes; expected a small file")
    return data


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: not JSON, nested too deeply, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_inside(path: Path) -> None:
    """Refuse what is not a regular file, and a link that leads out of its folder.

    The hub's cache keeps a model as a folder of links to `blobs` beside it: there they may lead.

    Raises:
        InputError: names the file and where it leads; one that is missing is no error.
    """
    check_regular(path)
    folder, target = path.parent.resolve(), path.resolve()
    if target.is_relative_to(folder) or _is_blob(target, folder):
        return
    raise InputError(
        f"{path}: a link that leads out of its folder, to {target}; put the file itself there (cp -L), or delete it"
    )


def _is_blob(target: Path, folder: Path) -> bool:
    """Tell whether it is a file of the hub's cache: `models--ORG--NAME/blobs/HASH`, for `snapshots/COMMIT`."""
    blobs = target.parent
    model = blobs.parent
    return blobs.name == "blobs" and (model.name.startswith("models--") or model / "snapshots" in folder.parents)


def copy_file(original: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file of a stranger's folder as it is.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is not a regular file, or a link that leads out of its folder, unless to weights.
    """
    path = Path(original)
    if path.suffix in CHECKED_WHEN_READ:
        check_regular(path)
    else:
        check_inside(path)
    shutil.copyfile(path, target)


def copy_tree(folder: Path, target: Path, ignore: Callable[[str, list[str]], Iterable[str]]) -> None:
    """Copy the files of a stranger's folder into `target`, which exists, except those that `ignore` gives.

    Raises:
        InputError: a link to a folder, or as for `copy_file`.
    """

    def left_out(inside: str, names: list[str]) -> set[str]:
        left = set(ignore(inside, names))
        for path in (Path(inside) / name for name in names if name not in left):
            if path.is_symlink() and path.is_dir():
                raise InputError(f"{path}: a link to a folder; put the folder itself there, or delete the link")
        return left

    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=left_out, copy_function=copy_file)

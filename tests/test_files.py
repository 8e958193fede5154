"""Folders are replaced whole: whoever looks, finds the old one or the new one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from recycle_onnx.files import new_folder, read_json, write_bytes, write_json
from tests.helpers.command import names
from tests.helpers.patience import PATIENCE

# looks from a process of its own: in a thread it would see only the moments when this one lets it run
WATCH = """
import os, sys
path, missing = sys.argv[1], 0
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    try:
        os.stat(path)
    except FileNotFoundError:
        missing += 1
print(missing)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others have no call that exchanges two folders")
def test_a_folder_that_is_replaced_is_never_missing(tmp_path: Path) -> None:
    target, done = tmp_path / "target", tmp_path / "done"
    with new_folder(target) as folder:
        (folder / "file").write_text("0")
    arguments = [sys.executable, "-c", WATCH, str(target / "file"), str(done)]
    watcher = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    for number in range(1, 1000):
        with new_folder(target, force=True) as folder:
            (folder / "file").write_text(str(number))
    done.touch()
    assert watcher.communicate(timeout=PATIENCE)[0] == "0\n"
    assert (target / "file").read_text() == "999"
    assert names(tmp_path) == ["done", "target"]


def test_halves_of_characters_survive_in_json(tmp_path: Path) -> None:
    """Other tools' JSON can hold them as escapes, and names of files are made of them where they are no UTF-8."""
    value = {"\udcff/é": "\ud800 🙂 \\ud800", "\udc00": ["\ud83d"]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    """For root even `/dev/null` would become a file, and everybody else on the machine would write into it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="not a regular file"):
            write_bytes(tmp_path / name, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_a_name_that_no_file_can_have_is_an_error_of_the_system(tmp_path: Path) -> None:
    for name in ("a\0b", "a" * 5000):
        with pytest.raises(OSError):  # noqa: PT011 -- the words are the system's
            write_bytes(tmp_path / name, b"new")
    assert names(tmp_path) == []

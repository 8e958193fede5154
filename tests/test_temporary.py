"""Temporary files: swept when nobody alive holds them, made with the user's umask, and one writer at a time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.files import new_folder, write_bytes
from recycle_onnx.temporary import sweep, sweep_folder, temporary_file, temporary_folder
from tests.helpers import processes, tiny
from tests.helpers.command import names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has locks of its own, and no umask")
MAKE = """
import sys, time
from pathlib import Path
from recycle_onnx.temporary import temporary_file, temporary_folder
target = Path(sys.argv[1])
with temporary_file(target), temporary_folder(target) as folder:
    (folder / "part").write_text("part")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.notes").write_text("the user's own")
    holder = subprocess.Popen([sys.executable, "-c", MAKE, str(target)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    sweep(target)
    assert len(names(tmp_path)) == 3
    holder.kill()
    holder.wait()
    assert len(names(tmp_path)) == 3
    write_bytes(target, b"new")
    assert names(tmp_path) == [".out.notes", "out"]


def test_another_target_s_leftovers_stay(tmp_path: Path) -> None:
    (tmp_path / ".out.b.12345678.tmp").write_text("of out.b, and of nobody alive")
    sweep(tmp_path / "o")
    assert len(names(tmp_path)) == 1
    sweep(tmp_path / "out.b")
    assert names(tmp_path) == []


def test_a_folder_is_swept_of_all_leftovers_that_nobody_holds(tmp_path: Path) -> None:
    (tmp_path / ".a.12345678.tmp").write_text("of a, and of nobody alive")
    (tmp_path / ".b.12345678.tmp").write_text("of b, and of nobody alive")
    (tmp_path / "notes.tmp").write_text("the user's own")
    with temporary_file(tmp_path / "c") as (held, _):
        sweep_folder(tmp_path)
        assert names(tmp_path) == [held.name, "notes.tmp"]


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_has_the_rights_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"text")
    write_bytes(tmp_path / "secret", b"text", private=True)
    with new_folder(tmp_path / "folder") as folder:
        (folder / "private").touch(0o600)  # as safetensors makes them
        (folder / "inner").mkdir(0o700)
    assert mode(tmp_path / "file") == 0o666 & ~umask
    assert mode(tmp_path / "secret") == 0o600
    assert mode(tmp_path / "folder") == mode(tmp_path / "folder" / "inner") == 0o777 & ~umask
    assert mode(tmp_path / "folder" / "private") == 0o666 & ~umask


def test_of_two_that_make_a_folder_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def make(text: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        with new_folder(target) as folder:
            (folder / "file").write_text(text)
            meanwhile()

    with pytest.raises(InputError, match="made by another process in the meantime"):
        make("first", lambda: make("second"))
    assert (target / "file").read_text() == "second"
    assert names(tmp_path) == ["out"]


def test_temporary_files_are_gone_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with temporary_file(tmp_path / "a"), temporary_folder(tmp_path / "b"):
            assert len(names(tmp_path)) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


def test_two_batches_into_one_file_are_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from recycle_onnx.export import export

    export(tiny.write_endless_base(tmp_path / "model", context_length=100_000), tmp_path / "bundle")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the cat"}\n' * 1 + '{"prompt": "the dog"}\n')
    command = ("batch", "bundle", "prompts.jsonl", "-o", "out", "-n", "90000")
    first = processes.start(*command, cwd=tmp_path)
    try:
        while not (tmp_path / "out").exists():
            assert first.poll() is None
            time.sleep(0.02)
        for option in ("--resume", "--force"):
            second = processes.run(*command, option, cwd=tmp_path)
            assert second.returncode == 2
            assert "out is being written by another process" in second.stderr
    finally:
        first.kill()
        first.communicate()

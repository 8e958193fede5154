"""What cannot be trained on is refused in one line, and the checkpoint stays as it was."""

from __future__ import annotations

import gzip
import sys
from functools import partial
from pathlib import Path

import pytest

from recycle_onnx.files import sha256
from tests.helpers import tiny
from tests.helpers.command import assert_one_error, assert_refused, names, run
from tests.helpers.patience import PATIENCE
from tests.helpers.processes import start

TEXT = "The cat sat on the mat and the dog sat on the log. A hen ran to the pen, and the fox ran home. "
SMALL = ("--batch-size", 4, "--sequence-length", 32, "--steps", 3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


BAD_DATA: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty": ("a.txt", b"", ("a.txt", "no text")),
    "blank": ("a.txt", b"\n \n", ("a.txt", "no text")),
    "shorter than a window": ("a.txt", b"too short", ("a.txt", "at least 32")),
    "not text": ("a.txt", b"\xff\xfe\x00", ("a.txt", "not UTF-8")),
    "not gzip": ("a.txt.gz", b"plain text", ("a.txt.gz", "gzip")),
    "half a gzip": ("a.txt.gz", gzip.compress(TEXT.encode() * 99)[:60], ("a.txt.gz", "gzip")),
    "a damaged gzip": ("a.txt.gz", gzip.compress(TEXT.encode())[:20] + b"\xff" * 40, ("a.txt.gz", "gzip")),
    "another field": ("a.jsonl", b'{"story": "The cat"}\n', ("a.jsonl, line 1", "'text'", "story", "--field")),
    "a field that is no text": ("a.jsonl", b'{"text": 3}\n', ("a.jsonl, line 1", "'text'")),
    "lines that are not JSON": ("a.jsonl", b'{"text": "a"}\nThe cat\n', ("a.jsonl, line 2", "not JSON")),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    file, data, words = BAD_DATA[name]
    (tmp_path / file).write_bytes(data)
    before = content(checkpoint)
    assert_refused(run("train", checkpoint, "-d", tmp_path / file, *SMALL), 2, *words)
    assert content(checkpoint) == before


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(vocab_size=50))
    (tmp_path / "a.txt").write_text(TEXT * 30)
    before = content(checkpoint)
    assert_refused(run("train", checkpoint, "-d", tmp_path / "a.txt", *SMALL), 2, "tokenizer", "ends at 49")
    assert content(checkpoint) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume",), ("no unfinished training", "without --resume")),
        (("--plot", "curves.doc"), ("curves.doc", "png")),
        (("--plot", "nowhere/curves.png"), ("no such folder",)),
        (("--gradient-accumulation", 3), ("--batch-size is 4", "multiple of 3")),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[object, ...], words: tuple[str, ...], checkpoint: Path) -> None:
    path = checkpoint.parent / "a.txt"
    path.write_text(TEXT * 30)
    before = content(checkpoint)
    assert_refused(run("train", checkpoint, "-d", path, *SMALL, *arguments), 2, *words)
    assert content(checkpoint) == before


def test_a_loss_that_is_not_finite_keeps_what_was_trained_before(checkpoint: Path) -> None:
    path = checkpoint.parent / "a.txt"
    path.write_text(TEXT * 30)
    assert run("train", checkpoint, "-d", path, *SMALL).exit_code == 0
    before = sha256(checkpoint / "recycler" / "model.safetensors")
    result = run("train", checkpoint, "-d", path, *SMALL, "--joint", "--recycle-weight", "inf")
    assert_refused(result, 1, "the loss became inf in step 1", "--lr")
    assert sha256(checkpoint / "recycler" / "model.safetensors") == before


@pytest.mark.skipif(sys.platform == "win32", reason="sets POSIX limits")
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("kilobytes", "save_minutes"), [(25, 10), (25, 0), (60, 0)])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    kilobytes: int, save_minutes: float, joint: bool, checkpoint: Path
) -> None:
    """The largest file a process may write stands for the space that is left."""
    import resource

    path = checkpoint.parent / "a.txt"
    path.write_text(TEXT * 30)
    assert run("train", checkpoint, "-d", path, *SMALL).exit_code == 0  # token ids are in the cache now
    before = content(checkpoint)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1024 * kilobytes,) * 2)
    arguments = [*SMALL, "--save-minutes", save_minutes, *["--joint"] * joint]
    process = start("train", checkpoint, "-d", path, *arguments, limit=limit)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, stderr
    assert stdout == b""
    assert_one_error(stderr.decode(), "cannot write")
    after = content(checkpoint)
    assert {name: after[name] for name in before if name != "training.jsonl"} == {
        name: before[name] for name in before if name != "training.jsonl"
    }
    assert set(after) - set(before) == set()
    assert names(checkpoint.parent) == ["a.txt", "model"]

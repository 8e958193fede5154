"""What is published: the sdist, and its wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST_SDIST = 620_000
LARGEST_FILE = 10_000_000


def build(project: Path, kind: str, folder: Path) -> Path:
    """The wheel or sdist of a project, in an empty folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    sdist = build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))
    assert sdist.stat().st_size < LARGEST_SDIST
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


def test_the_sdist_holds_what_builds_the_wheel_and_no_more(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} - {".gitignore"} == {
        "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "optimum", "pyproject.toml", "recycle_onnx",
    }  # fmt: skip


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    theirs, ours = (build(top, "wheel", tmp_path / name) for top, name in ((unpacked, "sdist"), (ROOT, "checkout")))
    names = zipfile.ZipFile(ours).namelist()
    assert "recycle_onnx/py.typed" in names
    page = (ROOT / "recycle_onnx" / "serve" / "chat_page").iterdir()
    assert {f"recycle_onnx/serve/chat_page/{file.name}" for file in page} <= set(names)
    assert sorted(zipfile.ZipFile(theirs).namelist()) == sorted(names)


def test_its_metadata_are_the_readme_links_and_pythons(unpacked: Path) -> None:
    metadata = (unpacked / "PKG-INFO").read_text(encoding="utf-8")
    for line in (
        "Description-Content-Type: text/markdown", "Classifier: Typing :: Typed", "License-Expression: Apache-2.0",
        "Project-URL: Source, https://", "Project-URL: Changelog, https://", "Requires-Python: >=3.11",
    ):  # fmt: skip
        assert line in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8") in metadata


def test_no_file_of_the_repository_is_larger_than_the_modules_of_the_samples() -> None:
    """A bundle that lies in the working folder must not get into a commit."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    if listed is None or listed.returncode != 0:
        pytest.skip("no git checkout here")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [file for file in files if file.exists() and file.stat().st_size > LARGEST_FILE] == []

"""What is published: the runtime's own wheel, small and without what makes bundles; the sdist, and its wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST = 300_000
LARGEST_SDIST = 500_000


def build(project: Path, kind: str, folder: Path) -> Path:
    """The wheel or sdist of a project, in an empty folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "packaging" / "runtime", "wheel", tmp_path_factory.mktemp("wheel"))


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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel's package in front of the checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)


def test_it_is_small_and_holds_no_maker_of_bundles(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[1] for name in names if name.startswith("recycle_onnx/")}
    assert wheel.stat().st_size < LARGEST
    assert {"runtime", "cli", "serve", "bundle.py", "LICENSE", "py.typed"} <= rooms
    assert not rooms & {"checkpoint", "export", "training"}


def test_it_generates_what_the_checkout_generates(installed: Path, tiny_bundle: Path) -> None:
    code = (
        "import sys, recycle_onnx\n"
        "with recycle_onnx.load(sys.argv[1], threads=1) as model:\n"
        "    print(recycle_onnx.__file__, model.generate([1, 5, 9], max_new_tokens=12).tokens)"
    )
    ours, theirs = (run(folder, "-c", code, tiny_bundle).stdout.split(maxsplit=1) for folder in (installed, ROOT))
    assert theirs[0] != ours[0]
    assert Path(ours[0]).is_relative_to(installed)
    assert theirs[1] == ours[1]


@pytest.mark.parametrize("verb", ["generate", "chat", "batch", "serve", "bench", "calibrate", "inspect", "doctor"])
def test_its_verbs_are_there(installed: Path, verb: str) -> None:
    made = run(installed, "-m", "recycle_onnx", verb, "--help")
    assert made.returncode == 0, made.stderr


def test_a_verb_that_makes_bundles_says_what_to_install(installed: Path) -> None:
    made = run(installed, "-m", "recycle_onnx", "export", "model", "out")
    assert made.returncode == 1
    assert "pip install 'recycle-onnx[export]'" in made.stderr
    assert len(made.stderr.splitlines()) == 1


def test_the_sdist_holds_what_builds_the_wheel_and_no_more(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} - {".gitignore"} == {
        "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "optimum", "pyproject.toml", "recycle_onnx",
    }  # fmt: skip


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    theirs, ours = (build(top, "wheel", tmp_path / name) for top, name in ((unpacked, "sdist"), (ROOT, "checkout")))
    names = zipfile.ZipFile(ours).namelist()
    assert "recycle_onnx/py.typed" in names
    assert sorted(zipfile.ZipFile(theirs).namelist()) == sorted(names)


def test_its_metadata_are_the_readme_links_and_pythons(unpacked: Path) -> None:
    metadata = (unpacked / "PKG-INFO").read_text(encoding="utf-8")
    for line in (
        "Description-Content-Type: text/markdown", "Classifier: Typing :: Typed", "License-Expression: Apache-2.0",
        "Project-URL: Source, https://", "Project-URL: Changelog, https://", "Requires-Python: >=3.11",
    ):  # fmt: skip
        assert line in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8") in metadata

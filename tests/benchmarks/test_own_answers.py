"""What float32 says of a quantized model's own answers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner


@pytest.fixture
def script() -> Any:
    return importlib.import_module("own_answers")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7], False),
        ([9, 1, 2, 1, 2, 1, 2], True),
        ([1, 2, 1, 2, 1, 2, 9], False),
        ([7, 7, 7], True),
        ([1, 2, 3, 1, 2, 3], False),
        ([], False),
    ],
)
def test_a_text_goes_in_circles_where_it_ends_in_repetitions(script: Any, tokens: list[int], expected: bool) -> None:
    assert script.in_circles(tokens) is expected


def test_a_model_agrees_with_its_own_greedy_answers(script: Any, tmp_path: Path, sample_bundle: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Once upon a time\nThe dog\n")
    arguments = ["--bundle", f"own={sample_bundle}", "--bundle", f"again={sample_bundle}", "--new-tokens", 24, "--json"]
    command = [str(part) for part in (tmp_path / "work", "--prompts", tmp_path / "prompts.txt", *arguments)]
    found = json.loads(CliRunner().invoke(script.main, command).stdout)
    assert [row["agreement"] for row in found.values()] == [1.0, 1.0]
    [path] = (tmp_path / "work").glob("*-again-*.jsonl")
    first, second = path.read_text().splitlines()
    path.write_text(json.dumps({**json.loads(first), "agrees": 0}) + "\n" + second + "\n")  # kept, not made again
    found = json.loads(CliRunner().invoke(script.main, command).stdout)
    assert 0 < found["again"]["agreement"] < 1

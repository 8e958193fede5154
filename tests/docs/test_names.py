"""Names of the code say what a thing is, each of one thing; docstrings of functions say what they do."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

MEASURED = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "measure_names.py"))


def test_names_and_docstrings_are_for_strangers() -> None:
    assert MEASURED["complaints"]() == []


@pytest.mark.parametrize(
    ("code", "complaints"),
    [
        ("class A: ...", ["A is the name of several classes: recycle_onnx/first.py:1, recycle_onnx/second.py:1"]),
        ("found = 1", ["recycle_onnx/first.py:1: found", "recycle_onnx/second.py:1: found"]),
        ("def run(given): ...", ["recycle_onnx/first.py:1: given", "recycle_onnx/second.py:1: given"]),
        ("x._done = 1", ["recycle_onnx/first.py:1: _done", "recycle_onnx/second.py:1: _done"]),
        ("x.done()", []),
        (
            'def run():\n    """The rows."""',
            ["recycle_onnx/first.py:1: The rows.", "recycle_onnx/second.py:1: The rows."],
        ),
        ('def run():\n    """Return the rows."""', []),
        (
            "def run():" + 50 * "\n    x = 1",
            ["recycle_onnx/first.py:1: run has 51 lines", "recycle_onnx/second.py:1: run has 51 lines"],
        ),
        ("@wrap\ndef run():" + 49 * "\n    x = 1", []),
        (
            "def run(a, b, c, /, d, *e, f, g, h, **i): ...",
            ["recycle_onnx/first.py:1: run has 9 parameters", "recycle_onnx/second.py:1: run has 9 parameters"],
        ),
        ("class _A:\n    def run(self, a, b, c, d, e, f, g, h): ...\ndel _A", ["_A is"]),
        ('class _A:\n    @property\n    def run(self):\n        """The rows."""\ndel _A', ["_A is"]),
    ],
)
def test_what_a_stranger_would_not_understand_is_named(tmp_path: Path, code: str, complaints: list[str]) -> None:
    folder = tmp_path / "recycle_onnx"
    folder.mkdir()
    for name in ("first.py", "second.py"):
        (folder / name).write_text(code, encoding="utf-8")
    named = MEASURED["complaints"](tmp_path)
    assert len(named) == len(complaints)
    assert all(line.startswith(start) for line, start in zip(named, complaints, strict=True))

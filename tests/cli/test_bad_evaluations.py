"""Requests to `eval` that make no sense are refused in one line, before anything is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from recycle_onnx.export import export
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

PIQA = {"query": "Question: the cat?\n", "choices": ["sat", "ran"], "gold": 0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    (tmp_path / "piqa.jsonl").write_text(json.dumps(PIQA))
    (tmp_path / "boolq.jsonl").write_text(json.dumps(PIQA).replace("query", "question"))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tasks", "piqa,mmlu"), ("'mmlu' is not known", "lambada, hellaswag, piqa, arc_easy, openbookqa, boolq")),
        (("--tasks", ""), ("task empty",)),
        (("--tasks", "piqa", "--limit", 0), ("limit is 0", "at least 1")),
        (("--perplexity", "DATA/text.txt", "--limit", 0), ("limit is 0", "at least 1")),
        (("--tasks", "piqa", "--data-folder", "DATA/none"), ("none: no such folder",)),
        (("--tasks", "arc_easy", "--data-folder", "DATA"), ("no file for arc_easy", "arc_easy*.jsonl")),
        (("--tasks", "piqa,boolq", "--data-folder", "DATA"), ("boolq.jsonl, line 1", "found: question")),
        (("--data-folder", "DATA"), ("--data-folder", "--tasks")),
        (("--acceptance", "DATA/text.txt", "--chain", 0), ("chain 0",)),
        (("--prompts", "DATA/piqa.jsonl"), ("piqa.jsonl, line 1", "no prompt", "--field")),
        (("--acceptance", "DATA/text.txt", "--report", "DATA/none/report.md"), ("none: no such folder",)),
        (("--acceptance", "DATA/text.txt", "--report", "DATA/text.txt"), ("text.txt: is a file",)),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(
    options: tuple[object, ...], words: tuple[str, ...], tiny_bundle: Path, data: Path
) -> None:
    before = names(data)
    given = [str(option).replace("DATA", str(data)) for option in options]
    assert_refused(run("eval", tiny_bundle, *given), 2, *words)
    assert names(data) == before


@pytest.mark.parametrize("kind", ["acceptance", "agreement", "prompts"])
def test_what_is_about_a_module_needs_one(kind: str, data: Path) -> None:
    export(tiny.write_base(data / "base", tiny.tiny_config()), data / "bundle")
    result = run("eval", data / "bundle", f"--{kind}", data / "text.txt")
    assert_refused(result, 2, "no recyclable module", f"--{kind}")
    assert run("eval", data / "bundle", "--perplexity", data / "text.txt").exit_code == 0


def test_a_missing_harness_is_named_with_its_extra(
    tiny_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "recycle_onnx.evaluation.harness", raising=False)
    result = run("eval", tiny_bundle, "--tasks", "piqa", "--data-folder", data)
    assert_refused(result, 1, "lm_eval", "pip install 'recycle-onnx[eval]'")


def test_a_missing_plotter_is_named_before_anything_is_measured(
    tiny_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "recycle_onnx.evaluation.plot", raising=False)
    result = run("eval", tiny_bundle, "--acceptance", data / "text.txt", "--report", data / "out")
    assert_refused(result, 1, "matplotlib", "pip install 'recycle-onnx[plot]'")
    assert not (data / "out").exists()

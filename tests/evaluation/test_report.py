"""Tables and reports of evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.acceptance import Acceptance
from recycle_onnx.evaluation.estimate import Estimate
from recycle_onnx.evaluation.report import Findings, Target, tables, write_report
from recycle_onnx.evaluation.tasks import TaskAccuracy

SURE, GUESS = Estimate(0.8, 0.7, 0.9), Estimate(0.5, 0.4, 0.6)
SHIFT = Estimate(-0.04, -0.06, -0.02)


def task(name: str, informative: bool, unnamed: float = 0.0) -> TaskAccuracy:
    full = SURE if informative else GUESS
    return TaskAccuracy(name, "acc", 200, 0.5, informative, full, SURE, GUESS, GUESS, SHIFT, unnamed)


FOUND = Findings(
    acceptance=[Acceptance("own", heat, 2, 100, [0.9, 0.75], 2.5) for heat in (0.0, 1.0)],
    tasks=[task("piqa", True), task("boolq", False)],
)


def test_a_difference_is_shown_where_the_task_says_something() -> None:
    piqa, boolq = tables(FOUND)["tasks"].rows
    assert piqa == ("piqa acc", "200", "50.0", "80.0 ± 10.0", "80.0", "50.0", "50.0 ± 10.0", "-4.0 ± 2.0")
    assert boolq[-1] == "not informative"


def test_tokens_that_the_module_cannot_name_are_mentioned() -> None:
    assert "lacks" not in tables(FOUND)["tasks"].note
    assert "lacks up to 12.5% of a task's tokens" in tables(Findings(tasks=[task("piqa", True, 0.125)]))["tasks"].note


def test_without_a_module_there_is_no_alternate() -> None:
    alone = TaskAccuracy("piqa", "acc", 200, 0.5, False, GUESS)
    table = tables(Findings(tasks=[alone]))["tasks"]
    assert table.columns == ("task", "rows", "chance", "full model", "")
    assert table.rows[0][-1] == "not informative"


@pytest.mark.parametrize(
    ("name", "files"),
    [("out", ["acceptance.png", "report.md", "tasks.png"]),
     ("quality.md", ["quality-acceptance.png", "quality-tasks.png", "quality.md"])],
)  # fmt: skip
def test_a_report_has_its_pictures_beside_it(name: str, files: list[str], tmp_path: Path) -> None:
    target = Target.of(tmp_path / name, ["acceptance", "tasks"])
    assert list(tmp_path.iterdir()) == []  # nothing before there is something to say
    write_report(target, "sample", FOUND)
    folder = target.path.parent
    assert sorted(path.name for path in folder.iterdir()) == files
    text = target.path.read_text()
    for picture in (file for file in files if file.endswith(".png")):
        assert f"]({picture})" in text
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert "| own text, sampled at 1 | 100 | 90.0% | 75.0% | 2.50 |" in text
    before = text
    write_report(target, "sample", FOUND)
    assert target.path.read_text() == before


def test_a_place_that_cannot_hold_a_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        Target.of(tmp_path / "file.txt", [])
    for name in ("none/report.md", "none/folder"):
        with pytest.raises(InputError, match="no such folder"):
            Target.of(tmp_path / name, [])


def test_json_holds_what_was_asked_for() -> None:
    shown = FOUND.to_json()
    assert list(shown) == ["acceptance", "tasks"]
    assert shown["acceptance"][1]["by_place"] == [0.9, 0.75]
    assert shown["tasks"][0]["full"] == SURE
    assert Findings().to_json() == {}

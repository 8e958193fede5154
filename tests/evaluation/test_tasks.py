"""Tasks: what a row becomes, what chance gives, and when a difference says something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.estimate import estimate, paired
from recycle_onnx.evaluation.task_rows import TASKS, Row, read_task, task_names
from recycle_onnx.evaluation.tasks import accuracy, chance

ROWS: dict[str, tuple[Row, Row]] = {
    "lambada": ({"context": "I saw a", "continuation": "cat"}, {"text": "I saw a cat"}),
    "hellaswag": (
        {"ctx": "Fencing: Two men fence: well. They rest. one man", "choices": ["a", "b", "c", "d"], "gold": 2},
        {"activity_label": "Fencing", "ctx_a": "Two men fence: well. They rest.", "ctx_b": "one man",
         "endings": ["a", "b", "c", "d"], "label": "2"},
    ),
    "piqa": (
        {"query": "Question: How?\n", "choices": ["so", "not"], "gold": 1},
        {"goal": "How?", "sol1": "so", "sol2": "not", "label": 1},
    ),
    "arc_easy": (
        {"query": "Question: Why?", "choices": ["x", "y", "z"], "gold": 2},
        {"question": "Why?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
    ),
    "openbookqa": (
        {"query": "Cats eat", "choices": ["mice", "rocks"], "gold": 0},
        {"question_stem": "Cats eat", "choices": {"text": ["mice", "rocks"], "label": ["A", "B"]}, "answerKey": "A"},
    ),
    "boolq": (
        {"query": "Passage: It is.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1},
        {"passage": "It is.", "question": "is it", "label": 1},
    ),
}  # fmt: skip


def write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / TASKS[name].pattern.replace("*", "_first")
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("name", TASKS)
def test_a_gathered_row_and_the_data_sets_own_are_the_same(name: str, tmp_path: Path) -> None:
    gathered, own = ROWS[name]
    write(tmp_path, name, gathered, {**own, "more": 1}, gathered)
    assert read_task(name, tmp_path) == [own] * 3
    assert read_task(name, tmp_path, 2) == [own] * 2


@pytest.mark.parametrize("name", TASKS)
def test_a_row_with_other_fields_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, ROWS[name][0], {"sentence": "no"})
    with pytest.raises(InputError, match=rf"jsonl, line 2: .*found: sentence.*{TASKS[name].own[0]}"):
        read_task(name, tmp_path)


@pytest.mark.parametrize(
    "change", [{"gold": 2}, {"gold": -1}, {"gold": "1"}, {"choices": ["a"]}, {"choices": ["a", "b", "c"]},
               {"choices": [1, 2]}, {"choices": "ab"}, {"query": 3}, {"query": None}],
)  # fmt: skip
def test_a_row_whose_values_make_no_sense_is_refused(change: Row, tmp_path: Path) -> None:
    write(tmp_path, "piqa", {**ROWS["piqa"][0], **change})
    with pytest.raises(InputError, match="line 1: not a row of this task"):
        read_task("piqa", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b"[1]", "found: list"), (b"{", "line 1: not JSON"), (b"\xff", "not UTF-8")],
)
def test_unreadable_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_task("piqa", tmp_path)


def test_a_missing_or_ambiguous_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file for piqa.*piqa\*\.jsonl"):
        read_task("piqa", tmp_path)
    for name in ("piqa.jsonl", "piqa_valid.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"several files \(piqa.jsonl, piqa_valid.jsonl\)"):
        read_task("piqa", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_task("piqa", tmp_path / "none")


def test_names_are_taken_once_and_unknown_ones_refused() -> None:
    assert task_names("piqa, boolq,piqa,") == ["piqa", "boolq"]
    for text, given in (("piqa,winogrande", "'winogrande'"), (" , ", "empty")):
        with pytest.raises(InputError, match=f"{given}.*lambada, hellaswag, piqa, arc_easy, openbookqa, boolq"):
            task_names(text)


def sample(right: float, choices: tuple[str, ...] = ("a", "b"), target: int = 0) -> dict[str, Any]:
    return {"acc": right, "arguments": [("question", choice) for choice in choices], "target": target}


def test_chance_is_a_guess_the_commonest_answer_or_nothing() -> None:
    assert chance([sample(1, ("a", "b")), sample(1, ("a", "b", "c", "d"))]) == (1 / 2 + 1 / 4) / 2
    assert chance([sample(1, ("no", "yes"), target) for target in (1, 1, 1, 0)]) == 3 / 4
    assert chance([sample(1, ("word",))] * 3) == 0


def test_a_task_says_something_three_standard_errors_above_chance() -> None:
    for right, informative in ((64, False), (66, True), (30, False), (100, True)):
        rows = [sample(1.0, ("a", f"b{index}")) for index in range(right)]
        rows += [sample(0.0, ("a", f"c{index}")) for index in range(100 - right)]
        assert accuracy("piqa", "acc", {"full": rows}).informative is informative, right
    assert not accuracy("lambada", "acc", {"full": [sample(0, ("word",))] * 50}).informative


def test_differences_are_paired() -> None:
    full = [sample(right) for right in (1, 1, 1, 0, 0, 1)]
    first = [sample(right) for right in (1, 0, 1, 0, 1, 1)]
    second = [sample(right) for right in (1, 0, 1, 0, 0, 0)]
    found = accuracy("piqa", "acc", {"full": full, "full_first": first, "module_first": second}, unnamed=0.1)
    assert (found.full_first, found.module_first) == (estimate([1, 0, 1, 0, 1, 1]), estimate([1, 0, 1, 0, 0, 0]))
    assert found.alternate == estimate([1, 0, 1, 0, 0.5, 0.5])
    assert found.difference == estimate([0, -1, 0, 0, 0.5, -0.5])
    assert found.unnamed == 0.1


def test_estimates_are_means_with_normal_intervals() -> None:
    values, others = [0.2, 0.9, 0.4, 0.4, 0.7], [0.3, 0.8, 0.6, 0.1, 0.6]
    low, high = stats.norm.interval(0.95, stats.tmean(values), stats.sem(values))
    assert estimate(values) == pytest.approx((stats.tmean(values), low, high), abs=1e-4)
    assert paired(values, others) == pytest.approx(estimate([0.1, -0.1, 0.2, -0.3, -0.1]))
    assert estimate([3.0]) == (3.0, 3.0, 3.0)

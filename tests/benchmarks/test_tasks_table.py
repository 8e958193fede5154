"""The tables of tasks: what is compared with what, row by row."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from recycle_onnx.evaluation.estimate import Estimate, estimate


@pytest.fixture
def script() -> Any:
    return importlib.import_module("tasks_table")


def samples(*right: int) -> list[dict[str, Any]]:
    return [
        {"acc": float(value), "target": 0, "arguments": [["", " a"], ["", f" b{row}"]], "doc_id": row}
        for row, value in enumerate(right)
    ]


def lines(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_bundles_are_compared_with_the_first_one(script: Any) -> None:
    found = {("float32", "piqa"): {"full": samples(*[1] * 80, *[0] * 20)}}
    found["int4", "piqa"] = {"full": samples(*[1] * 70, *[0] * 30)}
    header, _, piqa, mean = lines(script.bundles_table(found, ["float32", "int4"], ["piqa"]))
    assert header == ["task", "rows", "chance", "float32", "int4 less float32"]
    difference = script.percent(estimate([0.0] * 70 + [-1.0] * 10 + [0.0] * 20), "+")
    assert piqa == ["piqa acc", "100", "50.0", "80.0 ± 7.9", difference]
    assert mean == ["mean of acc", "", "", "80.0 ± 7.9", difference]
    assert difference.startswith("-10.0 ± ")


def test_alternate_is_compared_with_its_own_full_model(script: Any) -> None:
    found = {("int4", "piqa"): {"full": samples(1, 1, 1, 0), "full_first": samples(1, 0, 1, 0),
                                "module_first": samples(1, 0, 0, 0)}}  # fmt: skip
    _, _, piqa, _ = lines(script.alternate_table(found, ["int4"], ["piqa"]))
    assert piqa == ["piqa acc", script.percent(estimate([0, -1, -0.5, 0]), "+")]


def test_transformers_is_compared_on_its_own_rows(script: Any) -> None:
    found = {
        ("transformers", "piqa"): {"full": samples(1, 0, 1)},
        ("float32", "piqa"): {"full": samples(1, 1, 1, 1, 1)},
    }
    _, _, piqa = lines(script.reference_table(found, "float32", ["piqa"]))
    assert piqa[2:] == ["100.0 ± 0.0", "2 of 3"]


def test_a_mean_of_tasks_is_surer_than_each(script: Any) -> None:
    assert script.mean([Estimate(0.2, 0.1, 0.3), Estimate(0.4, 0.3, 0.5)]) == pytest.approx(
        (0.3, 0.3 - 0.1 / 2**0.5, 0.3 + 0.1 / 2**0.5)
    )


def test_slowest_tasks_start_first_and_every_task_has_a_place(script: Any) -> None:
    assert set(script.SLOWEST_FIRST) == set(script.TASKS)

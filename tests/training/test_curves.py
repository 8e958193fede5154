"""The curves of a training are drawn from its log alone; torch is not needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.command import assert_refused, run

STEP = {"spent": 0.1, "next_token": 2.0, "tokens_per_second": 9.0, "learning_rate": 1e-3}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())


def write_log(checkpoint: Path, steps: int) -> None:
    lines = [{"step": n, "recycle": 5 / n, "acceptance": [0.5, 0.25], **STEP} for n in range(1, steps + 1)]
    (checkpoint / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "re')


@pytest.mark.parametrize("steps", [1, 3, 1000])
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_finished_training_is_drawn(steps: int, kind: str, checkpoint: Path, tmp_path: Path) -> None:
    write_log(checkpoint, steps)
    plot = tmp_path / f"curves.{kind}"
    assert run("inspect", checkpoint, "--plot", plot, "--json").exit_code == 0
    assert plot.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[kind])


def test_what_cannot_be_drawn_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert_refused(run("inspect", checkpoint, "--plot", tmp_path / "curves.png"), 2, "training.jsonl", "no steps")
    write_log(checkpoint, 3)
    assert_refused(run("inspect", checkpoint, "--plot", tmp_path / "curves.doc"), 2, "curves.doc", "png")
    assert_refused(run("inspect", checkpoint, "--plot", tmp_path / "no" / "curves.png"), 2, "no such folder")
    (checkpoint / "training.jsonl").write_text('{"step": 1, "loss": 3}\n')
    assert_refused(run("inspect", checkpoint, "--plot", tmp_path / "curves.png"), 2, "training.jsonl", "version")
    assert not (tmp_path / "curves.png").exists()

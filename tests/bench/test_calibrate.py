"""`calibrate`: what it keeps, who uses it, and that a stale one is ignored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.evaluation.acceptance import Watched
from recycle_onnx.runtime.decoding.auto import first_choice
from recycle_onnx.runtime.decoding.calibration import MachineCalibration, calibration_file
from recycle_onnx.runtime.model import Model
from tests.helpers.command import assert_refused, run

PROMPT = "One day, a shy robot by the river"
STEPS = {"full_1": 30.0, "full_2": 31.5, "full_3": 41.0, "full_4": 49.0, "full_5": 58.0}
LAPTOP = {**STEPS, "recycle_1": 2.8, "recycle_2": 3.0}


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))


def keep(model: Model, *rates: float) -> Path:
    made = MachineCalibration.of_this_machine(LAPTOP, {"module": list(rates)})
    return made.save(model.bundle, "cpu", None)


def test_it_measures_steps_and_acceptance_and_keeps_them(sample_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Once upon a time\n\nThe little dog ran\n")
    out = run("calibrate", sample_bundle, "--prompts", tmp_path / "prompts.txt", "--new-tokens", 30, "--json")
    assert out.exit_code == 0, out.stderr
    found = json.loads(out.stdout)
    assert set(found["step_ms"]) == set(LAPTOP)
    assert 0.6 < found["acceptance"]["module"][0] <= 1
    assert Path(found["file"]).exists()
    assert set(found["auto_starts_with"]) == {"source", "chain", "expected_speedup"}
    kept = recycle_onnx.load(sample_bundle).calibration
    assert kept is not None
    assert kept.step_ms == found["step_ms"]
    (tmp_path / "prompts.jsonl").write_text('{"ask": "Once upon a time"}')
    asked = ("--prompts", tmp_path / "prompts.jsonl", "--new-tokens", 30, "--json")
    assert_refused(run("calibrate", sample_bundle, *asked), 2, "line 1: no prompt")
    assert run("calibrate", sample_bundle, *asked, "--field", "ask").exit_code == 0


def test_people_are_told_what_auto_starts_with(tiny_bundle: Path) -> None:
    out = run("calibrate", tiny_bundle, "--context", 8, "--new-tokens", 10).stdout
    assert "steps in ms: full model on 1 token " in out
    assert "auto starts with" in out


def test_it_holds_for_its_number_of_threads_only(sample_bundle: Path) -> None:
    keep(recycle_onnx.load(sample_bundle), 0.9)
    assert recycle_onnx.load(sample_bundle).calibration is not None
    assert recycle_onnx.load(sample_bundle, threads=1).calibration is None


@pytest.mark.parametrize(("rates", "chain"), [((0.98, 0.98, 0.98, 0.98), 4), ((0.7, 0.2), 1), ((0.05,), 0)])
def test_auto_starts_from_it_and_gives_the_text_of_full(
    rates: tuple[float, ...], chain: int, sample_bundle: Path
) -> None:
    keep(recycle_onnx.load(sample_bundle), *rates)
    model = recycle_onnx.load(sample_bundle)
    assert model.calibration is not None
    assert first_choice(model.calibration)[1] == chain
    result = model.generate(PROMPT, max_new_tokens=30)
    assert result.decisions is not None
    assert result.tokens == model.generate(PROMPT, strategy="full", max_new_tokens=30).tokens
    first = next(iter(result.decisions["chosen"]))
    assert first == (f"module_{chain}" if chain else "nothing")


@pytest.mark.parametrize("change", [{"onnxruntime": "1.0"}, {"processor": "an abacus"}])
def test_a_stale_one_is_ignored_with_a_warning(
    change: dict[str, str], sample_bundle: Path, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    made = MachineCalibration.of_this_machine(LAPTOP, {"module": [0.9]})
    replace(made, **change).save(sample_model.bundle, "cpu", None)
    assert recycle_onnx.load(sample_bundle).calibration is None
    [message] = [record.getMessage() for record in caplog.records]
    assert "stale" in message
    assert "recycle-onnx calibrate" in message


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"step_ms": {"full_1": -1}, "acceptance": {}, "processor": "", "onnxruntime": ""}']
)
def test_a_damaged_one_is_ignored_with_a_warning(
    text: str, sample_bundle: Path, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    keep(sample_model, 0.9)
    calibration_file(sample_model.bundle, "cpu", None).write_text(text)
    assert recycle_onnx.load(sample_bundle).calibration is None
    assert "damaged" in caplog.text


class Always:
    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        return [1, 2, 3]


def test_acceptance_is_counted_by_place_given_those_before_were_right() -> None:
    watched = Watched(Always(), 4)
    for kept in ([9], [1, 9], [1, 2, 9], [1, 2, 3, 9]):
        watched.propose(kept, 0, 4)
    assert (watched.tried, watched.right) == ([3, 3, 2, 0], [3, 2, 1, 0])


def test_bad_requests_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    assert_refused(
        run("calibrate", tiny_bundle, "--prompts", tmp_path / "empty.txt"), 2, "empty.txt", "a prompt a line"
    )
    assert_refused(run("calibrate", tiny_bundle, "--prompts", tmp_path / "none.txt"), 2, "none.txt")
    assert_refused(run("calibrate", tiny_bundle, "--context", 5000), 2, "5000")


def test_a_cache_that_cannot_be_written_is_told_of_before_anything_is_measured(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    refused = run("calibrate", tiny_bundle)
    assert_refused(refused, 1, "cannot write", "RECYCLE_ONNX_CACHE")
    assert "calibrating" not in refused.stderr

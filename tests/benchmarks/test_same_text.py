"""The comparison of all strategies' texts: it goes on where it broke off, and a strategy that errs is seen."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from recycle_onnx.runtime.decoding.decoder import Decoder


@pytest.fixture
def script() -> Any:
    return importlib.import_module("same_text")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Once upon a time\nThe dog\nLily saw\n")
    return path


def run(script: Any, work: Path, bundle: Path, prompts: Path, *more: str) -> Any:
    arguments = [work, "--bundle", f"own={bundle}", "--prompts", prompts, "--new-tokens", "12", "--json", *more]
    return CliRunner().invoke(script.main, [str(part) for part in arguments])


def test_all_strategies_say_what_full_says(script: Any, tmp_path: Path, sample_bundle: Path, prompts: Path) -> None:
    first = run(script, tmp_path / "work", sample_bundle, prompts, "--limit", "1")
    assert first.exit_code == 0
    [kept] = (tmp_path / "work").glob("*-0-12.jsonl")
    line = kept.read_text()
    result = run(script, tmp_path / "work", sample_bundle, prompts)
    assert kept.read_text().startswith(line)
    found = json.loads(result.stdout)
    assert list(found) == ["own, greedy", "own, seeded at 0.8"]
    for each in found.values():
        assert (each["texts"], each["lossless"]) == (3, ["exact"])
        assert set(each["differing"]) == set(script.STRATEGIES)
    assert result.exit_code == 0


def test_a_strategy_that_errs_is_named_with_its_prompt(
    script: Any, tmp_path: Path, sample_bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Decoder, ids: list[int], *, keep: int = 1) -> Any:
        rows = step(self, ids, keep=keep)
        if len(ids) > 1:  # as if runs on several tokens rounded otherwise
            rows[..., 3] += 100
        return rows

    step = Decoder.full_step
    monkeypatch.setattr(Decoder, "full_step", wrong)
    result = run(script, tmp_path / "work", sample_bundle, prompts, "--limit", "1")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["own, greedy"]["differing"]["verify, chain 1"] == [0]

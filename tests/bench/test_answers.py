"""`bench --prompts`: answers by every strategy, compared with those of `full`. (How fast anything is, is no test.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recycle_onnx.bench.answers import AnswerOptions, bench_answers
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.prompts import read_prompts
from tests.helpers import tiny
from tests.helpers.command import assert_refused, run
from tests.helpers.prompts import story_prompts


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"turns": [text]}) for text in story_prompts(3)))
    return path


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_lossless_strategies_give_the_answers_of_full(temperature: float, sample_bundle: Path, prompts: Path) -> None:
    options = AnswerOptions(new_tokens=40, temperature=temperature)
    found = {result.strategy: result for result in bench_answers(sample_bundle, read_prompts(prompts), options)}
    assert list(found) == ["full", "auto", "verify", "alternate", "lookup"]
    for name, result in found.items():
        assert result.answers == 3
        assert (result.identical == 1) is (name != "alternate")
        assert result.lossless == ("no" if name == "alternate" else "exact")
        assert result.interval[0] <= result.decode_tokens_per_second <= result.interval[1]
    assert found["full"].measured_speedup == found["full"].tokens_per_full_run == 1
    assert found["verify"].acceptance_rate is not None
    assert found["verify"].tokens_per_full_run == pytest.approx(1 + found["verify"].acceptance_rate, abs=0.03)
    assert found["alternate"].acceptance_rate is None


def test_the_command_takes_prompts(sample_bundle: Path, prompts: Path) -> None:
    small = ("--prompts", prompts, "--limit", 2, "--new-tokens", 12, "--strategies", "verify")
    result = run("bench", sample_bundle, *small, "--threads", "1,2", "--repeat", 2, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(r["strategy"], r["threads"], r["answers"]) for r in found["results"]] == [
        (name, threads, 4) for threads in (1, 2) for name in ("full", "verify")
    ]
    assert "full" in found["verdict"]
    assert "2 answers, greedy" in run("bench", sample_bundle, *small).stdout


def test_requests_that_make_no_sense_are_refused(sample_bundle: Path, prompts: Path) -> None:
    given = ("bench", sample_bundle, "--prompts", prompts)
    assert_refused(run(*given, "--new-tokens", 4), 2, "new-tokens is 4", "at least 8")
    assert_refused(run(*given, "--repeat", 0), 2, "repeat is 0")
    assert_refused(run(*given, "--limit", 0), 2, "limit is 0")
    assert_refused(run(*given, "--field", "text"), 2, "line 1", "no prompt in 'text'")
    assert_refused(run(*given, "--forced-acceptance", 0.5), 2, "--prompts", "--forced-acceptance")
    assert_refused(run("bench", "--shape", "smollm2-135m", "--prompts", prompts), 2, "--prompts needs a BUNDLE")


def test_without_a_module_there_are_fewer_strategies_and_short_answers_are_none(prompts: Path, tmp_path: Path) -> None:
    export(tiny.write_base(tmp_path / "base", tiny.tiny_config()), tmp_path / "bundle")
    (tmp_path / "prompts.txt").write_text("the cat\n")
    asked = read_prompts(tmp_path / "prompts.txt")
    found = bench_answers(tmp_path / "bundle", asked, AnswerOptions(new_tokens=10))
    assert [result.strategy for result in found] == ["full", "auto", "lookup"]
    with pytest.raises(InputError, match="needs a recyclable module"):
        bench_answers(tmp_path / "bundle", asked, AnswerOptions(("verify",), new_tokens=10))
    config = tmp_path / "bundle" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": list(range(500))}))
    with pytest.raises(InputError, match="no prompt has an answer of 8 tokens"):
        bench_answers(tmp_path / "bundle", asked, AnswerOptions(new_tokens=10))

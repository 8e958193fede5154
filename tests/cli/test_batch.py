"""Many prompts: answers in order, resumed after a kill, and lines that make no sense."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.batch import Request, Worker, answers, parse_request
from recycle_onnx.errors import RecycleError
from recycle_onnx.export import export
from recycle_onnx.runtime.settings import SETTINGS
from tests.helpers import tiny
from tests.helpers.command import assert_one_error, assert_refused, run
from tests.helpers.patience import PATIENCE
from tests.helpers.processes import start_signalled

TOKENS = 6
LINES, LENGTH = 24, 40
"""Of a run that is killed, and the tokens of each answer."""
KILLED_AT = 8 * LENGTH
"""Runs of the graphs: some eight lines are answered, of which at most four wait to be written."""
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "the cat"},
    {"prompt": "the dog sat on", "id": "dog", "max_new_tokens": 9},
    {"messages": [{"role": "system", "content": "the hen"}, {"role": "user", "content": "the pen"}]},
    {"prompt": "a hen ran — é", "temperature": 0.9, "seed": 4, "strategy": "verify"},
    {"prompt": "the mat", "logit_bias": {"5": -5.0}, "stop": ["zzz"]},
    {"prompt": "on the log"},
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(context_length=256))
    export(folder / "model", folder / "bundle")
    return folder / "bundle"


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", PROMPTS)


@pytest.fixture(scope="module")
def whole(bundle: Path, prompts: Path) -> bytes:
    """What an undisturbed run writes."""
    output = prompts.with_name("whole.jsonl")
    result = run("batch", bundle, prompts, "-o", output, "-n", TOKENS, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    return output.read_bytes()


def test_every_line_gets_the_answer_of_a_run_of_its_own(bundle: Path, whole: bytes) -> None:
    records = [json.loads(line) for line in whole.splitlines()]
    model = recycle_onnx.load(bundle, threads=1)
    assert [record["id"] for record in records] == [1, "dog", 3, 4, 5, 6]
    for record, line in zip(records, PROMPTS, strict=True):
        settings = {name: line[name] for name in ("temperature", "seed", "strategy") if name in line}
        settings["max_new_tokens"] = line.get("max_new_tokens", TOKENS)
        if "logit_bias" in line:
            settings["logit_bias"] = {5: -5.0}
        if "prompt" in line:
            expected = model.generate(line["prompt"], **settings)
        else:
            answer = model.conversation("the hen").send("the pen", **settings)
            assert list(answer)
            expected = answer.result
        assert record["text"] == expected.text
        assert record["new_tokens"] == expected.stats.new_tokens == len(expected.tokens)
        assert record["finish_reason"] == expected.finish_reason


def test_several_workers_write_the_same_file(bundle: Path, prompts: Path, whole: bytes, tmp_path: Path) -> None:
    result = run("batch", bundle, prompts, "-o", tmp_path / "out.jsonl", "-n", TOKENS, "--workers", 3, "--json")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    summary = json.loads(result.stdout)
    assert (summary["lines"], summary["answered"], summary["failed"], summary["resumed"]) == (6, 6, 0, 0)
    assert summary["new_tokens"] == sum(json.loads(line)["new_tokens"] for line in whole.splitlines())


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.999, 1.0])
def test_a_file_that_was_cut_anywhere_is_completed(
    part: float, bundle: Path, prompts: Path, whole: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    cut = whole[: int(part * len(whole))]
    output.write_bytes(cut)
    result = run("batch", bundle, prompts, "-o", output, "-n", TOKENS, "--threads", 1, "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert output.read_bytes() == whole
    assert json.loads(result.stdout)["resumed"] == cut.count(b"\n")


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_is_completed(kill: signal.Signals, bundle: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"the cat {n}"} for n in range(LINES)])
    output, undisturbed = tmp_path / "out.jsonl", tmp_path / "undisturbed.jsonl"
    options = ("-n", LENGTH, "--threads", 1, "--stop-ids", 299)
    process = start_signalled(kill, KILLED_AT, "batch", bundle, prompts, "-o", output, *options)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    done = output.read_bytes().count(b"\n")
    assert 3 <= done < LINES
    assert stdout == b""
    if kill == signal.SIGINT:
        assert process.returncode == 130
        said = [line for line in stderr.decode().splitlines() if not line.startswith("answering ")]
        assert_one_error("\n".join(said), f"interrupted after {done} of {LINES} lines", "--resume")
    resumed = run("batch", bundle, prompts, "-o", output, *options, "--resume", "--json")
    assert json.loads(resumed.stdout)["resumed"] == done
    assert run("batch", bundle, prompts, "-o", undisturbed, *options).exit_code == 0
    assert output.read_bytes() == undisturbed.read_bytes()


BAD_LINES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "not JSON": ('{"prompt": ', ("not JSON",)),
    "not an object": ("[1]", ("object", "list")),
    "no prompt": ({"id": 7}, ("either a prompt or messages",)),
    "both": ({"prompt": "a", "messages": []}, ("either a prompt or messages",)),
    "an empty prompt": ({"prompt": ""}, ("prompt is ''",)),
    "half a character": ('{"prompt": "\\ud800"}', ("not JSON",)),
    "a typo in a field": ({"promt": "the cat"}, ("'promt'", "did you mean 'prompt'")),
    "a typo in a setting": ({"prompt": "the", "max_new_token": 3}, ("'max_new_token'",)),
    "a setting out of range": ({"prompt": "the", "temperature": -1}, ("temperature is -1",)),
    "a chain that is no number of tokens": (
        {"prompt": "the", "chain": 1.5, "strategy": "verify"},
        ("chain is 1.5; expected 1 to 15 for strategy 'verify'",),
    ),
    "a strategy that is none": ({"prompt": "the", "strategy": "guess"}, ("strategy 'guess' is not known",)),
    "a confidence that is none": ({"prompt": "the", "min_confidence": 7}, ("min-confidence is 7",)),
    "a bias for no token": ({"prompt": "the", "logit_bias": {"cat": 1}}, ("cat",)),
    "an id that is a list": ({"prompt": "the", "id": [1]}, ("id is [1]",)),
    "the id of another": ({"prompt": "the", "id": 1}, ("id 1 is that of line 1 too",)),
    "two constraints": ({"prompt": "the", "regex": "a", "grammar": "b"}, ("regex and grammar", "one of them")),
    "a schema that is none": ({"prompt": "the", "json_schema": "cat"}, ("JSON schema", "'cat'")),
    "messages without content": ({"messages": [{"role": "user"}]}, ("role and content",)),
    "tool calls and no content": (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, {"role": "user"}]},
        ("has tool calls, which are not supported",),
    ),
    "content in parts": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ("content in parts",)),
    "nothing to answer": ({"messages": [{"role": "assistant", "content": "a"}]}, ("messages", "user's")),
}


def test_lines_that_make_no_sense_fail_alone(bundle: Path, tmp_path: Path) -> None:
    lines: list[Any] = [{"prompt": "the cat"}, "", *(line for line, _ in BAD_LINES.values()), {"prompt": "the dog"}]
    output = tmp_path / "out.jsonl"
    result = run("batch", bundle, write(tmp_path / "prompts.jsonl", lines), "-o", output, "-n", 2)
    assert result.exit_code == 1
    assert f"Error: {len(BAD_LINES)} of {len(BAD_LINES) + 2} lines failed" in result.stderr
    first, *failed, last = map(json.loads, output.read_text().splitlines())
    assert first["new_tokens"] == last["new_tokens"] == 2
    for number, (name, record) in enumerate(zip(BAD_LINES, failed, strict=True), start=3):
        line, words = BAD_LINES[name]
        has_id = isinstance(line, dict) and isinstance(line.get("id"), int)
        assert record.keys() == {"id", "error"}
        assert record["id"] == (line["id"] if has_id else number)
        for word in words:
            assert word in record["error"]


@pytest.mark.parametrize("name", [name for name in BAD_LINES if name != "the id of another"])
def test_a_file_in_which_no_line_makes_sense_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    line, words = BAD_LINES[name]
    prompts = write(tmp_path / "prompts.jsonl", ["", line])
    refused = run("batch", tmp_path / "no bundle", prompts, "-o", tmp_path / "out.jsonl")
    assert_refused(refused, 2, "prompts.jsonl", "no line can be answered", *words)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in SETTINGS for value in ({}, "x", 1e400)])
def test_a_line_with_any_bad_setting_is_a_request_with_an_error(name: str, value: Any) -> None:
    line = json.dumps({"id": "bad", "prompt": "the cat", name: value})
    request = parse_request(line, 1)
    if (name, value) in (("logit_bias", {}), ("stop", "x")):
        assert request.error is None  # nothing, or a single string
    else:
        assert request.id == "bad"
        assert request.error is not None
        assert name.replace("_", "-") in request.error or name in request.error


def test_a_line_may_have_a_constraint(sample_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    lines: list[Any] = [
        {"prompt": "Tim has a", "json_schema": {"enum": ["cat", "dog"]}},
        {"prompt": "Tim has a", "regex": "[0-9]{4}"},
        {"prompt": "Tim has a", "grammar": 'start: "cat"', "logit_bias": {"5": 1.0}},
    ]
    result = run("batch", sample_bundle, write(tmp_path / "prompts.jsonl", lines), "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.stderr
    schema, regex, grammar = (json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert json.loads(schema) in ("cat", "dog")
    assert len(regex) == 4
    assert int(regex) >= 0
    assert grammar == "cat"


def test_settings_that_only_the_model_can_refuse_fail_their_line_too(bundle: Path, tmp_path: Path) -> None:
    lines: list[Any] = [
        {"prompt": "the cat"},
        {"prompt": "the", "id": "x", "stop_ids": [999]},
        {"prompt": "the", "id": "y", "logit_bias": {"999": 1}},
        {"prompt": "the", "id": "z", "min_new_tokens": 5},
    ]
    result = run("batch", bundle, write(tmp_path / "p.jsonl", lines), "-o", tmp_path / "o", "-n", 2, "--workers", 2)
    assert result.exit_code == 1
    first, *failed = map(json.loads, (tmp_path / "o").read_text().splitlines())
    assert first["new_tokens"] == 2
    assert [record["id"] for record in failed] == ["x", "y", "z"]
    for record, word in zip(failed, ("999", "999", "min-new-tokens is 5"), strict=True):
        assert word in record["error"]


def test_options_that_make_no_sense_are_refused_before_anything_starts(
    bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    refused = run("batch", bundle, prompts, "-o", tmp_path / "o", "--stop-ids", 999)
    assert_refused(refused, 2, "stop-ids has token id 999")
    assert not (tmp_path / "o").exists()


def test_a_prompt_that_the_model_cannot_take_has_its_error_in_its_line(bundle: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "the cat " * 300}, {"prompt": "the cat"}])
    result = run("batch", bundle, prompts, "-o", tmp_path / "out.jsonl", "-n", 2)
    assert result.exit_code == 1
    assert "1 of 2 lines failed" in result.stderr
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert "context of 256" in first["error"]
    assert second["new_tokens"] == 2
    again = run("batch", bundle, prompts, "-o", tmp_path / "out.jsonl", "-n", 2, "--resume", "--json")
    assert again.exit_code == 1  # as long as the file has errors
    summary = json.loads(again.stdout)
    assert (summary["resumed"], summary["failed_before"], summary["failed"]) == (2, 1, 0)
    assert "1 of 2 lines failed" in again.stderr


def test_what_is_not_the_fault_of_a_prompt_is_no_line_of_the_output(bundle: Path) -> None:
    worker = Worker(recycle_onnx.load(bundle, threads=1))
    assert "context of 256" in str(worker(Request(1, "the cat " * 300, {})).error)
    nothing = dict.fromkeys(range(worker.model.bundle.manifest.graphs["full"].vocab_size), -math.inf)
    assert "nothing to choose" in str(worker(Request(1, "the cat", {"logit_bias": nothing})).error)
    worker.model.close()
    with pytest.raises(RecycleError, match="closed"):
        worker(Request(1, "the cat", {}))


def test_a_mistake_of_ours_in_one_line_leaves_the_others_their_answers(bundle: Path) -> None:
    def broken(ids: Any, logits: Any) -> Any:
        raise ZeroDivisionError("a processor's own")

    worker = Worker(recycle_onnx.load(bundle, threads=1))
    requests = [Request(1, "the cat", {}), Request(2, "the dog", {"processors": (broken,)}), Request(3, "the hen", {})]
    first, second, third = answers(worker, requests)
    assert second.error is not None
    assert "unexpected ZeroDivisionError (a processor's own)" in second.error
    assert first.result is not None
    assert third.result is not None


def test_an_output_is_neither_replaced_nor_mixed_up_by_accident(
    bundle: Path, prompts: Path, whole: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(whole)
    assert_refused(run("batch", bundle, prompts, "-o", output), 2, "out.jsonl exists", "--resume", "--force")
    others = write(tmp_path / "others.jsonl", [{"prompt": "the cat", "id": "other"}])
    refused = run("batch", bundle, others, "-o", output, "--resume")
    assert_refused(refused, 2, "out.jsonl, line 1", "answers 1", "'other'")
    output.write_bytes(b'{"id": 1\n' + whole)
    assert_refused(run("batch", bundle, prompts, "-o", output, "--resume"), 2, "out.jsonl, line 1", "damaged")
    assert_refused(run("batch", bundle, prompts, "-o", prompts, "--force"), 2, "file of the prompts")
    assert run("batch", bundle, prompts, "-o", output, "-n", TOKENS, "--threads", 1, "--force").exit_code == 0
    assert output.read_bytes() == whole


@pytest.mark.parametrize(("content", "words"), [(b"", "no requests"), (b"\n\n", "no requests"), (None, "cannot read")])
def test_a_file_without_prompts_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "prompts.jsonl").write_bytes(content)
    refused = run("batch", tmp_path / "bundle", tmp_path / "prompts.jsonl", "-o", tmp_path / "out.jsonl")
    assert_refused(refused, 2, "prompts.jsonl", words)


def test_an_output_that_is_no_file_is_not_waited_for(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    outcome = run("batch", bundle, prompts, "-o", tmp_path / "pipe", "--force")
    assert_refused(outcome, 2, "a named pipe", "a regular file")


def test_no_workers_are_refused(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    assert_refused(run("batch", bundle, prompts, "-o", tmp_path / "o", "--workers", 0), 2, "workers is 0")

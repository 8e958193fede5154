"""Requests to `generate` that make no sense are refused in one line; export targets are protected."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from recycle_onnx.export import export
from recycle_onnx.files import sha256
from tests.helpers import processes, tiny
from tests.helpers.command import assert_one_error, assert_refused, names, run

LONG = "the cat sat on the mat " * 20
REQUESTS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "an empty prompt": (("",), ("prompt is empty",)),
    "a prompt longer than the context": ((LONG,), ("tokens", "context of 64")),
    "no new tokens": (("the", "--max-new-tokens", 0), ("max-new-tokens is 0", "at least 1")),
    "fewer than no new tokens": (("the", "-n", -5), ("max-new-tokens is -5", "at least 1")),
    "an unknown provider": (("the", "--provider", "quantum"), ("'quantum'", "cpu")),
    "an unknown strategy": (("the", "--strategy", "guess"), ("'guess'", "full, alternate, verify, lookup")),
    "no threads": (("the", "--threads", 0), ("threads is 0", "at least 1")),
    "a negative temperature": (("the", "--temperature", -0.1), ("temperature is -0.1",)),
    "an infinite temperature": (("the", "--temperature", "inf"), ("temperature is inf",)),
    "a temperature that is no number": (("the", "--temperature", "nan"), ("temperature is nan",)),
    "a negative top-k": (("the", "--top-k", -1), ("top-k is -1",)),
    "an empty nucleus": (("the", "--top-p", 0), ("top-p is 0",)),
    "a nucleus beyond everything": (("the", "--top-p", 1.5), ("top-p is 1.5",)),
    "a relative probability beyond 1": (("the", "--min-p", 2), ("min-p is 2",)),
    "a repetition penalty of 0": (("the", "--repetition-penalty", 0), ("repetition-penalty is 0",)),
    "a presence penalty out of range": (("the", "--presence-penalty", 5), ("presence-penalty is 5", "-2 to 2")),
    "more tokens at least than at most": (("the", "-n", 3, "--min-new-tokens", 4), ("min-new-tokens is 4", "3")),
    "a bias without a number": (("the", "--logit-bias", "4"), ("logit-bias is '4'", "42=-1.5")),
    "a bias for an unknown token": (("the", "--logit-bias", "999=1"), ("logit-bias", "999", "vocabulary of 300")),
    "an unknown token to stop at": (("the", "--stop-ids", 999), ("stop-ids", "999", "vocabulary of 300")),
    "too many log-probabilities": (("the", "--logprobs", 99), ("logprobs is 99", "20")),
    "a schema and an expression": (("the", "--regex", "a", "--json-schema", "x"), ("--json-schema and --regex", "one")),
    "a schema that is not there": (("the", "--json-schema", "missing.json"), ("missing.json", "no such file")),
    "a grammar that is not there": (("the", "--grammar", "missing.lark"), ("missing.lark", "no such text file")),
    "an option that is no number": (("the", "-n", "many"), ("'many'", "--help")),
    "a typo in an option": (("the", "--max-new-token", 3), ("--max-new-token", "--help")),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_a_request_that_makes_no_sense_is_refused(name: str, form: tuple[str, ...], tiny_bundle: Path) -> None:
    arguments, words = REQUESTS[name]
    assert_refused(run("generate", tiny_bundle, *arguments, *form), 2, *words)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("generate", "", "x"), "BUNDLE"), (("chat", " "), "BUNDLE"), (("run", ""), "SOURCE"),
        (("inspect", ""), "FOLDER"), (("export", "", "out"), "CHECKPOINT"), (("export", "checkpoint", ""), "BUNDLE"),
        (("batch", "bundle", "prompts", "-o", ""), "--output"), (("attach", "base", "out", "--module", ""), "--module"),
        (("generate", "bundle", "x", "--json-schema", ""), "--json-schema"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_an_empty_name_is_told_of(arguments: tuple[str, ...], named: str) -> None:
    """An unset variable of a script leaves one, and it would mean the working folder."""
    assert_refused(run(*arguments), 2, f"{named} is empty; expected ")


def test_standard_input_must_be_text(tiny_bundle: Path) -> None:
    assert_refused(run("generate", tiny_bundle, "-", stdin=b""), 2, "prompt is empty")
    assert_refused(run("generate", tiny_bundle, "-", stdin=b"caf\xe9"), 2, "standard input", "UTF-8")
    assert run("generate", tiny_bundle, "-", "-n", "2", stdin=b"the cat\n").exit_code == 0


def test_a_bundle_without_a_module_has_one_strategy(tmp_path: Path) -> None:
    export(tiny.write_base(tmp_path / "base", tiny.tiny_config()), tmp_path / "bundle")
    assert run("generate", tmp_path / "bundle", "the cat", "-n", "2").exit_code == 0
    for strategy in ("verify", "alternate"):
        result = run("generate", tmp_path / "bundle", "the cat", "--strategy", strategy)
        assert_refused(result, 2, strategy, "has none", "'full'")


def test_an_unknown_verb_lists_the_verbs() -> None:
    assert_refused(run("genrate", "x"), 2, "'genrate'", "export", "generate")


@pytest.mark.parametrize("words", [["--debug", "inspect", "nowhere"], ["inspect", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(words: list[str]) -> None:
    result = processes.run(*words)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    quiet = processes.run(*(word for word in words if word != "--debug"))
    assert quiet.returncode == 2
    assert_one_error(quiet.stderr, "nowhere")


def test_an_existing_bundle_is_replaced_with_force_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    assert run("export", tiny_checkpoint, target).exit_code == 0
    (target / "mine.txt").write_text("a note")
    assert_refused(run("export", tiny_checkpoint, target), 2, "bundle exists", "--force")
    assert (target / "mine.txt").exists()
    assert run("export", tiny_checkpoint, target, "--force").exit_code == 0
    assert not (target / "mine.txt").exists()
    assert names(tmp_path) == ["bundle"]


def test_a_failing_export_keeps_the_bundle_it_was_to_replace(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    run("export", tiny_checkpoint, target)
    before = {path.name: sha256(path) for path in target.iterdir()}
    broken = tiny.write_checkpoint(tmp_path / "broken", tiny.tiny_config())
    (broken / "tokenizer.json").write_text("{}")
    assert run("export", broken, target, "--force").exit_code == 2
    assert {path.name: sha256(path) for path in target.iterdir()} == before
    assert names(tmp_path) == ["broken", "bundle"]


def test_a_file_in_the_way_is_not_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    for force in ((), ("--force",)):
        assert_refused(run("export", tiny_checkpoint, tmp_path / "bundle", *force), 2, "bundle")
    assert (tmp_path / "bundle").read_text() == "a file"
    below = tmp_path / "bundle" / "deeper" / "still"
    assert_refused(run("export", tiny_checkpoint, below), 1, "bundle", "cannot write there")


def test_an_export_does_not_replace_the_checkpoint_it_reads(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())
    inside = checkpoint / "recycler"
    for target in (checkpoint, inside, tmp_path):
        assert_refused(run("export", checkpoint, target, "--force"), 2, "holds", "give another name")
    assert_refused(run("attach", checkpoint, tmp_path, "--force"), 2, "holds", "give another name")
    assert run("inspect", checkpoint).exit_code == 0


def test_an_export_does_not_replace_the_folder_one_stands_in(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for target in (".", "..", tmp_path):
        assert_refused(run("export", tiny_checkpoint, target, "--force"), 2, "holds", "give another name")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of folders work otherwise on Windows")
def test_a_folder_that_cannot_be_written_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:
        locked = Path("/proc")  # nobody creates folders there, not even root
    assert_refused(run("export", tiny_checkpoint, locked / "bundle"), 1, str(locked), "cannot write there")
    assert_refused(run("attach", tiny_checkpoint, locked / "model"), 1, str(locked), "cannot write there")


def test_after_two_dashes_debug_is_a_prompt(tiny_bundle: Path) -> None:
    result = run("generate", "-n", 3, tiny_bundle, "--", "--debug")
    assert result.stdout.startswith("--debug")


def test_a_constraint_on_the_command_line(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": ["cat", "dog"]}')
    grammar.write_text('start: "a cat" | "a dog"')
    for arguments, texts in (
        (("--json-schema", schema), ('the "cat"\n', 'the "dog"\n')),
        (("--grammar", grammar), ("the a cat\n", "the a dog\n")),
        (("--regex", "cat|dog"), ("the cat\n", "the dog\n")),
    ):
        result = run("generate", tiny_bundle, "the ", *arguments)
        assert result.stdout in texts
    schema.write_text('{"type": "person"}')
    assert_refused(run("generate", tiny_bundle, "the", "--json-schema", schema), 2, "Invalid type: person")
    assert_refused(run("generate", tiny_bundle, "the", "--regex", "("), 2, "regular expression '('")

"""A module that was never trained is told of, and `auto` does not use it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.bundle import MANIFEST, Manifest
from recycle_onnx.export import export
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.command import run

NOTE = "note: the module is untrained"


def notes(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith(NOTE)]


@pytest.fixture
def untrained(tiny_bundle: Path) -> Model:
    return recycle_onnx.load(tiny_bundle)


def test_export_and_generate_say_so_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert len(notes(run("export", tiny_checkpoint, out).stderr)) == 1
    done = run("generate", out, "the cat", "-n", 4)
    assert len(notes(done.stderr)) == 1
    assert "recycle-onnx train" in done.stderr
    assert "--module" in done.stderr


@pytest.mark.parametrize(
    ("strategy", "told"), [("auto", 1), ("verify", 1), ("alternate", 1), ("full", 0), ("lookup", 0)]
)
def test_it_matters_where_the_module_would_be_asked(strategy: str, told: int, tiny_bundle: Path) -> None:
    done = run("generate", tiny_bundle, "the cat", "-n", 4, "--strategy", strategy, "--json")
    assert len(notes(done.stderr)) == told
    assert json.loads(done.stdout)["strategy"] == strategy


def test_chat_and_batch_say_so_too(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("chat", tiny_bundle, "-n", 3, stdin=b"hi\n")
    assert done.exit_code == 0, done.stderr
    assert len(notes(done.stderr)) == 1
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the cat"}\n')
    done = run("batch", tiny_bundle, tmp_path / "prompts.jsonl", "-o", tmp_path / "out.jsonl", "-n", 3)
    assert done.exit_code == 0, done.stderr
    assert len(notes(done.stderr)) == 1


def test_a_trained_module_and_a_base_alone_are_not_told_of(sample_bundle: Path, tmp_path: Path) -> None:
    assert not notes(run("generate", sample_bundle, "One day", "-n", 4).stderr)
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    assert not notes(run("export", base, tmp_path / "bundle").stderr)
    assert not notes(run("generate", tmp_path / "bundle", "the cat", "-n", 4).stderr)
    assert json.loads(run("inspect", tmp_path / "bundle", "--json").stdout)["module_trained"] is None
    assert not recycle_onnx.load(tmp_path / "bundle").module_trained


def test_inspect_has_it_as_a_field(tiny_bundle: Path, tiny_checkpoint: Path, sample_bundle: Path) -> None:
    for folder, trained in ((tiny_bundle, False), (tiny_checkpoint, False), (sample_bundle, True)):
        assert json.loads(run("inspect", folder, "--json").stdout)["module_trained"] is trained
    assert "untrained" in run("inspect", tiny_bundle).stdout


def test_auto_never_asks_it(untrained: Model) -> None:
    result = untrained.generate("the cat", strategy="auto", max_new_tokens=45)
    assert result.decisions is not None
    assert result.stats.recycle_runs == 0
    assert not [name for name in result.decisions["chosen"] if name.startswith("module")]
    assert result.tokens == untrained.generate("the cat", strategy="full", max_new_tokens=45).tokens
    assert untrained.generate("the cat", strategy="verify", max_new_tokens=20).stats.recycle_runs > 0


def test_a_conversation_may_change_from_auto_to_verify(untrained: Model) -> None:
    conversation = untrained.conversation(overflow="drop_oldest")
    for strategy in ("auto", "verify", "auto"):
        answer = conversation.send("hi", strategy=strategy, max_new_tokens=6)
        assert len(list(answer)) > 0


def test_a_bundle_that_does_not_say_has_a_trained_module(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle")
    path = tmp_path / "bundle" / MANIFEST
    manifest = Manifest.read(path)
    assert manifest.recycler is not None
    silent = {name: value for name, value in manifest.recycler.items() if name != "trained_depth"}
    replace(manifest, recycler=silent).write(path)
    model = recycle_onnx.load(tmp_path / "bundle")
    assert model.module_trained
    result = model.generate("the cat", strategy="auto", max_new_tokens=45)
    assert result.decisions is not None
    assert [name for name in result.decisions["chosen"] if name.startswith("module")]

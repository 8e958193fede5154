"""Perplexity of several models on several texts, and a model that is moved off any grid of few bits."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.export import export
from tests.benchmarks.conftest import BENCHMARKS
from tests.helpers import tiny
from tests.helpers.prompts import LONG_STORY


@pytest.fixture
def script() -> Any:
    return importlib.import_module("perplexity")


def test_windows_are_spread_evenly_over_the_part_of_a_text_that_was_named(
    script: Any, tmp_path: Path, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "WINDOW", 8)
    (tmp_path / "a.txt").write_text("not read. " + LONG_STORY)
    tokenizer = recycle_onnx.load(sample_bundle).tokenizer
    ids = tokenizer.encode(LONG_STORY[:400]).ids
    every = [ids[start : start + 8] for start in range(0, len(ids) - 7, 8)]
    windows = script.windows(sample_bundle, f"{tmp_path / 'a.txt'}:10:400", 3)
    assert windows == [every[number * (len(every) // 3)] for number in range(3)]
    with pytest.raises(SystemExit, match=f"{len(every)} windows of 8 tokens; expected 999"):
        script.windows(sample_bundle, f"{tmp_path / 'a.txt'}:10:400", 999)


def test_what_was_measured_is_kept_by_model_and_text(script: Any, tmp_path: Path, sample_bundle: Path) -> None:
    ids = recycle_onnx.load(sample_bundle).encode(LONG_STORY)
    texts = {"a": [ids[:30]], "b": [ids[:30], ids[30:60]]}
    compared = {"ours": script.Model((sys.executable, BENCHMARKS / "peers" / "ours.py", sample_bundle, 1), ())}
    path = tmp_path / "kept.jsonl"
    first = script.measured(path, compared, {"a": texts["a"]})
    assert 1 < first["ours"]["a"] < 1000
    path.write_text(json.dumps({"name": "ours on a", "perplexity": 7.0}) + "\n")
    found = script.measured(path, compared, texts)
    assert found["ours"]["a"] == 7.0
    assert 1 < found["ours"]["b"] != first["ours"]["a"]


def test_models_are_compared_with_the_first_one(script: Any) -> None:
    rows = {"float32": {"a": 20.0, "b": 4.0}, "int4": {"a": 21.0, "b": 3.9}}
    assert script.table(rows, {"float32": 537.0, "int4": 108.77}).splitlines() == [
        "| | MB | a | b |",
        "|---|---|---|---|",
        "| float32 | 537.0 | 20.000 | 4.000 |",
        "| int4 | 108.8 | 21.000 (+5.0%) | 3.900 (-2.5%) |",
    ]


def test_a_model_off_the_grid_computes_the_same(tmp_path: Path) -> None:
    off_grid = importlib.import_module("off_grid")
    folder = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    tensors, before = (load_file(folder / "model.safetensors") for _ in range(2))
    config = json.loads((folder / "config.json").read_text())
    for name, factors in off_grid.changes(config, np.random.default_rng(0)):
        tensors[name] = tensors[name] * factors
    save_file(tensors, moved / "model.safetensors")
    assert all((tensors[name] != before[name]).mean() > 0.9 for name in tensors if ".layers." in name)
    logits = []
    for checkpoint in (folder, moved):
        export(checkpoint, tmp_path / f"{checkpoint.name}.bundle")
        logits.append(recycle_onnx.load(tmp_path / f"{checkpoint.name}.bundle").decoder("full").prefill([5, 6, 7]))
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)

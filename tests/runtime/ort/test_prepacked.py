"""Weights laid out for this processor are kept in the user's cache, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.cache import cache_folder
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.prepacked import GRAPH, MADE, WEIGHTS

PROMPT = "One day, a shy robot by the river"


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))


def tokens(model: Model) -> list[int]:
    return model.generate(PROMPT, strategy="verify", max_new_tokens=30).tokens


def entry() -> Path:
    return next(cache_folder().glob(f"prepacked/*/full/{MADE}")).parent


def test_it_makes_the_same_text_and_is_made_once(sample_bundle: Path, sample_model: Model) -> None:
    expected = tokens(sample_model)
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == expected
    made = (entry() / WEIGHTS).stat().st_ino
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == expected
    assert (entry() / WEIGHTS).stat().st_ino == made


def test_what_another_version_made_is_made_again(sample_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    recycle_onnx.load(sample_bundle, prepacked=True)
    made = json.loads((entry() / MADE).read_text())
    (entry() / MADE).write_text(json.dumps({**made, "onnxruntime": "1.0"}))
    recycle_onnx.load(sample_bundle, prepacked=True)
    assert "stale" in caplog.text
    assert json.loads((entry() / MADE).read_text()) == made


def test_a_cut_file_is_made_again(sample_bundle: Path, sample_model: Model) -> None:
    recycle_onnx.load(sample_bundle, prepacked=True)
    os.truncate(entry() / WEIGHTS, 1000)
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == tokens(sample_model)
    assert (entry() / WEIGHTS).stat().st_size > 1000


def test_weights_altered_at_the_same_size_are_made_again(
    sample_bundle: Path, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    recycle_onnx.load(sample_bundle, prepacked=True)
    path = entry() / WEIGHTS
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(bytes(byte ^ 0x55 for byte in data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == tokens(sample_model)
    assert "damaged; making it again" in caplog.text
    assert path.read_bytes() == data


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"sha256": 7}', "\udcff", None])
def test_a_damaged_record_is_made_again(content: str | None, sample_bundle: Path, sample_model: Model) -> None:
    recycle_onnx.load(sample_bundle, prepacked=True)
    (entry() / MADE).unlink()
    folder = next(cache_folder().glob("prepacked/*/full"))
    if content is None:
        (folder / MADE).mkdir()
    else:
        (folder / MADE).write_text(content, errors="surrogateescape")
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == tokens(sample_model)


def test_a_file_where_its_folder_should_be_gives_way(
    sample_bundle: Path, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    recycle_onnx.load(sample_bundle, prepacked=True)
    folder = entry().parent
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == tokens(sample_model)
    assert "no prepacked weights" in caplog.text


def test_a_damaged_graph_is_made_again(
    sample_bundle: Path, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    recycle_onnx.load(sample_bundle, prepacked=True)
    (entry() / GRAPH).write_bytes(b"not a graph")
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == tokens(sample_model)
    assert "damaged; making it again" in caplog.text


def test_a_cache_that_cannot_be_written_gives_way_too(
    sample_bundle: Path, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder().parent.joinpath("cache").write_text("a file where the folder should be")
    assert tokens(recycle_onnx.load(sample_bundle, prepacked=True)) == tokens(sample_model)
    assert "no prepacked weights" in caplog.text

"""Rows are dropped by what kernels sum up at once, and where a trial finds a bit changed all are kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.machine import second_level_cache
from recycle_onnx.runtime.decoding import equal_rows, window_rows
from recycle_onnx.runtime.decoding.equal_rows import try_rows
from recycle_onnx.runtime.decoding.trials import random_text
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.providers import why_too_old
from tests.helpers import tiny
from tests.helpers.windows import RUN, drop_soon, write_checkpoint
from tests.helpers.x86 import x86

WINDOW, CONTEXT = 100, 4096
LONG = np.random.default_rng(5).integers(1, 300, 120).tolist()


def checkpoint(folder: Path, head_dim: int) -> Path:
    """Three layers, of which two have a window."""
    tiny.write_base(folder, tiny.tiny_config(num_layers=3, head_dim=head_dim, context_length=CONTEXT))
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    windows = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": kinds}
    config = {"model_type": "smollm3", "no_rope_layer_interval": 4, **windows}
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **config})
    return folder


@pytest.fixture(scope="module", params=list(product(("ort", "standard"), (64, 80, 96, 128, 256))), ids=str)
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    flavour, head_dim = request.param
    if reason := why_too_old(flavour):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("wide")
    export(checkpoint(folder / "model", head_dim), folder / "bundle", ExportOptions(flavour))
    return recycle_onnx.load(folder / "bundle", threads=1)


@pytest.fixture
def int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))
    drop_soon(monkeypatch)
    how = ExportOptions(quantization=Quantization(8), compare=False)
    export(write_checkpoint(tmp_path / "model"), tmp_path / "bundle", how)
    model = recycle_onnx.load(tmp_path / "bundle", threads=1)
    model.prefill_chunk = RUN
    return model


@x86
def test_no_bit_changes_whatever_the_width_of_heads(wide: Model) -> None:
    assert try_rows(wide.decoder("full"))


@x86
def test_a_row_more_shows(wide: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    step_of = window_rows.step_of
    monkeypatch.setattr(window_rows, "step_of", lambda spec: step_of(spec) + 1)
    assert not try_rows(wide.decoder("full"))


def test_a_trial_takes_the_memory_of_a_layer_of_each_kind(wide: Model) -> None:
    decoder = wide.decoder("full")
    try_rows(decoder)
    cache = decoder.full.cache
    assert len({id(buffer) for buffer in cache.buffers}) == 4  # keys and values, with a window and without
    assert max(array.shape[2] for array in cache.arrays) < CONTEXT
    _, past = random_text(decoder.full, 30, 40)
    assert [rows is past[index % 2] for index, rows in enumerate(past)] == [True] * 6


@pytest.mark.parametrize(
    ("kilobytes", "head_dim", "step"),
    [
        (1024, 64, 512),
        (1024, 96, 1364),
        (1024, 80, 1636),
        (1280, 64, 640),
        (256, 64, 512),
        (2048, 256, 256),
        (None, 64, 2048),
    ],
)
def test_steps_are_whole_blocks_of_the_kernel(
    kilobytes: int | None, head_dim: int, step: int, wide: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_level_cache, "size", lambda: kilobytes and 1024 * kilobytes)
    spec = wide.bundle.manifest.graphs["full"]
    by_flavour = [window_rows.step_of(replace(spec, head_dim=head_dim, flavour=name)) for name in ("ort", "standard")]
    assert by_flavour == [step, 1024]


def test_graphs_know_the_flavour_that_the_manifest_has_once(wide: Model) -> None:
    manifest = Bundle.open(wide.bundle.folder).manifest
    assert manifest.graphs["full"].flavour == manifest.flavour
    assert "flavour" not in read_json(wide.bundle.folder / "recycle.json")["graphs"]["full"]


@x86
def test_where_a_bit_changes_all_rows_are_kept_and_texts_stay_exact(
    int8: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(equal_rows, "try_rows", lambda decoder: bool(tried.append(decoder)))
    decoder = int8.decoder("verify")
    short = int8.generate(LONG[:8], strategy="verify", max_new_tokens=4)
    assert (short.lossless, tried) == ("exact", [])
    for _ in range(2):
        long = int8.stream(LONG, strategy="verify", max_new_tokens=40, stop_ids=(), decoder=decoder).finish()
        assert (long.lossless, len(tried)) == ("exact", 1)
        assert decoder.full.cache.window is None
    assert int8.generate(LONG, strategy="full", max_new_tokens=40, stop_ids=()).tokens == long.tokens


@x86
def test_where_none_changes_rows_are_dropped(int8: Model) -> None:
    decoder = int8.decoder("verify")
    int8.stream(LONG, strategy="verify", max_new_tokens=4, stop_ids=(), decoder=decoder).finish()
    assert decoder.full.cache.window is not None
    assert (decoder.full.cache.dropped > 0) == try_rows(int8._halves.trial_decoder(256))


def test_where_runs_differ_anyway_rows_are_dropped_without_a_trial(
    int8: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal_rows, "try_rows", lambda _: pytest.fail("there is nothing to lose"))
    monkeypatch.setattr("recycle_onnx.runtime.decoding.equal_runs.try_runs", lambda _: False)
    decoder = int8.decoder("verify")
    int8.stream(LONG, strategy="verify", max_new_tokens=4, stop_ids=(), decoder=decoder).finish()
    assert decoder.full.cache.dropped > 0

"""Room that a bundle needs, against what a loaded one takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.doctor import needs
from recycle_onnx.doctor.needs import Needs
from recycle_onnx.export import export
from recycle_onnx.machine.bandwidth import Bandwidth
from recycle_onnx.machine.memory import SystemMemory
from tests.helpers.windows import CONTEXT, RUN, drop_soon, write_checkpoint

SPEED = Bandwidth(10.0, 20.0, 2)
SMALL = Needs(weights_bytes=600, cache_bytes=400, context_length=100, full_step_bytes=600, tokens_per_second=1.0)


def test_caches_are_those_of_a_text_as_long_as_the_context(tiny_bundle: Path) -> None:
    found = needs.find(Bundle.open(tiny_bundle).manifest, SPEED)
    with recycle_onnx.load(tiny_bundle) as model:
        decoder = model.decoder("verify")
        assert decoder.recycler is not None
        for half in (decoder.full, decoder.recycler):
            half.reserve(found.context_length)
        arrays = [*decoder.full.cache.arrays, *decoder.recycler.cache.arrays]
        assert found.cache_bytes == sum(array.nbytes for array in arrays)
    assert found.weights_bytes == sum(path.stat().st_size for path in tiny_bundle.glob("*.data"))
    assert found.tokens_per_second == pytest.approx(20e9 / (tiny_bundle / "model.onnx.data").stat().st_size)


def test_an_embedding_of_its_own_is_not_read_by_a_step(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    own = replace(manifest, base={**manifest.base, "tied_embeddings": False})
    apart = needs.full_step_bytes(manifest) - needs.full_step_bytes(own)
    assert apart == 4 * manifest.base["vocab_size"] * manifest.base["hidden_size"]


@pytest.mark.parametrize(
    ("memory", "level", "word"),
    [
        (SystemMemory(2000, 1000, None, None), None, ""),
        (SystemMemory(2000, 900, None, None), "advice", "about 75 tokens fit"),
        (SystemMemory(2000, 2000, 1500, 900), "advice", "about 75 tokens fit"),
        (SystemMemory(2000, 500, None, None), "advice", "are free now"),
        (SystemMemory(500, 400, None, None), "broken", "cannot be loaded"),
        (SystemMemory(2000, 2000, 500, 400), "broken", "cannot be loaded"),
        (SystemMemory(None, None, None, None), None, ""),
    ],
)
def test_what_does_not_fit(memory: SystemMemory, level: str | None, word: str) -> None:
    found = list(needs.findings(SMALL, memory))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(word in f"{finding.what} {finding.why}" for finding in found)


def test_layers_with_a_window_take_no_more_after_a_while(tmp_path: Path) -> None:
    export(write_checkpoint(tmp_path / "model"), tmp_path / "bundle")
    with recycle_onnx.load(tmp_path / "bundle") as model:
        manifest = model.bundle.manifest
        small = replace(SMALL, cache_bytes=460, window_bytes=60, window_rows=20)  # 4 each, and 3 for the first 20
        assert [small.tokens_in(size) for size in (0, 70, 140, 180, 460)] == [0, 10, 20, 30, 100]
        all_windows = replace(SMALL, cache_bytes=60, window_bytes=60, window_rows=20)
        assert all_windows.tokens_in(30) == 10
        assert needs.find(manifest, SPEED).cache_bytes == needs.cache_bytes(manifest, CONTEXT)
        short, row = needs.find(manifest, SPEED), manifest.graphs["recycler"].row_bytes
        assert (short.window_bytes, short.window_rows) == (3 * CONTEXT * row, CONTEXT)  # its context is short
        assert needs.growth(manifest) == row  # of the one layer without a window


def test_a_text_takes_what_was_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_soon(monkeypatch)
    export(write_checkpoint(tmp_path / "model"), tmp_path / "bundle")
    with recycle_onnx.load(tmp_path / "bundle") as model:
        model.prefill_chunk = RUN
        decoder = model.decoder("verify")
        assert decoder.recycler is not None
        decoder.prefill([1] * (CONTEXT - 2))
        decoder.start_recycling(1)
        taken = decoder.full.cache.nbytes + decoder.recycler.cache.nbytes
        spare_rows = 3 * model.bundle.manifest.graphs["recycler"].row_bytes  # a second row for each layer that drops
        assert taken == needs.cache_bytes(model.bundle.manifest, CONTEXT) + spare_rows

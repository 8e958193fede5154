"""Room that a bundle needs, against what a loaded one takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.doctor import needs
from recycle_onnx.doctor.needs import Needs
from recycle_onnx.machine.bandwidth import Bandwidth
from recycle_onnx.machine.memory import SystemMemory

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

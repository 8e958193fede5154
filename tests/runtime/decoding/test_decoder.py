"""Caches: chunked prefill, growth, rolling back, and the module's one row less."""

from __future__ import annotations

import numpy as np
import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.decoding.kv_cache import FIRST_CAPACITY
from recycle_onnx.runtime.model import Model
from tests.helpers.prompts import LONG_STORY


def rows(half: Half | None) -> list[np.ndarray]:
    assert half is not None
    return [array[:, :, : half.length].copy() for array in half.cache.arrays]


def prefilled(model: Model, ids: list[int], chunk: int) -> tuple[Decoder, np.ndarray, np.ndarray]:
    decoder = model.decoder("verify")
    decoder.chunk = chunk
    logits = decoder.prefill(ids).copy()
    return decoder, logits, decoder.start_recycling(int(logits.argmax())).copy()


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_prefill_in_chunks_fills_both_caches_as_one_run_does(sample_model: Model, chunk: int) -> None:
    ids = sample_model.encode(LONG_STORY)
    assert len(ids) > 256
    whole, logits, draft = prefilled(sample_model, ids, len(ids))
    pieces, *others = prefilled(sample_model, ids, chunk)
    for expected, found in zip((logits, draft), others, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    for half in ("full", "recycler"):
        for expected, found in zip(rows(getattr(whole, half)), rows(getattr(pieces, half)), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("strategy", ["alternate", "verify"])
def test_the_module_has_read_one_token_less_than_there_are(sample_model: Model, strategy: str) -> None:
    prompt = sample_model.encode("Once upon a time")
    generation = sample_model.stream(prompt, strategy=strategy, max_new_tokens=30)
    decoder = generation.decoder
    for token in generation:
        known = len(prompt) + len(generation.tokens)
        if token.recycled and strategy == "alternate":
            assert decoder.recycler is not None
            assert decoder.recycler.length == known - 2  # it proposed the last token, and has not read its row yet
        assert decoder.full.length <= known


def test_the_module_lags_one_row_after_every_recycle_step(sample_model: Model) -> None:
    ids = sample_model.encode("One day, a cat")
    decoder, logits, draft = prefilled(sample_model, ids, 256)
    first, second = int(logits.argmax()), int(draft.argmax())
    assert decoder.recycler is not None
    assert decoder.recycler.length == len([*ids, first]) - 1
    logits = decoder.full_step([first, second], keep=2)
    decoder.recycle_step([second, int(logits[1].argmax())])
    assert decoder.recycler.length == len([*ids, first, second, 0]) - 1


def test_a_cropped_cache_goes_on_as_if_nothing_had_been_read(sample_model: Model) -> None:
    ids = sample_model.encode("One day, a cat")
    decoder = sample_model.decoder("full")
    decoder.prefill(ids)
    expected = decoder.full_step([5, 6, 7], keep=3).copy()
    decoder.keep(len(ids))
    decoder.full_step([9, 9, 9, 9, 9], keep=1)
    decoder.keep(len(ids))
    np.testing.assert_array_equal(decoder.full_step([5, 6, 7], keep=3), expected)


def test_buffers_grow_with_the_text_and_keep_what_was_read(sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[: FIRST_CAPACITY - 2]
    decoder = sample_model.decoder("verify")
    decoder.prefill(ids)
    assert decoder.full.cache.capacity == FIRST_CAPACITY
    for token in (5, 6, 7, 8):
        stepped = decoder.full_step([token], keep=1).copy()
    assert decoder.full.cache.capacity == 2 * FIRST_CAPACITY
    other = sample_model.decoder("verify")
    np.testing.assert_allclose(other.prefill([*ids, 5, 6, 7, 8]), stepped, atol=1e-4)


def test_text_beyond_the_context_is_refused_before_anything_is_overwritten(sample_model: Model) -> None:
    context = sample_model.bundle.manifest.context_length
    decoder = sample_model.decoder("full")
    decoder.prefill([5] * context)
    with pytest.raises(InputError, match=f"{context + 1} tokens"):
        decoder.full_step([5], keep=1)
    assert decoder.full.length == context


def test_generation_fills_the_context_to_its_last_token(sample_model: Model) -> None:
    context = sample_model.bundle.manifest.context_length
    prompt = [5] * (context - 5)
    for strategy in sample_model.strategies:
        result = sample_model.generate(prompt, strategy=strategy)
        assert result.finish_reason == "stop" or len(result.tokens) == 5

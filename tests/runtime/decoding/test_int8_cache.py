"""Caches of eight bits at work: they grow, go back, are copied and saved as those of floats are, in a quarter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.decoding.kv_cache import FIRST_CAPACITY, INT8_STEP
from recycle_onnx.runtime.model import Model
from tests.helpers.prompts import LONG_STORY, story_prompts
from tests.helpers.runs import read
from tests.helpers.x86 import x86


@pytest.fixture(scope="module")
def model(int8_cache_bundle: Path) -> Model:
    return recycle_onnx.load(int8_cache_bundle, threads=1)


@x86
def test_runs_of_all_sizes_agree_to_the_bit(model: Model) -> None:
    ids = model.encode(LONG_STORY)[:288]  # beyond the cache's first 256 rows
    single = read(model, ids, 1)
    for size in (2, 3, 4, 16):
        assert all(np.array_equal(one, several) for one, several in zip(single, read(model, ids, size), strict=True))
    assert model.equal_runs


@x86
@pytest.mark.parametrize("strategy", ["verify", "lookup", "auto"])
def test_strategies_give_the_text_of_full_and_call_it_exact(model: Model, strategy: str) -> None:
    for prompt in story_prompts(200)[::50]:
        expected = model.generate(prompt, strategy="full", max_new_tokens=30)
        result = model.generate(prompt, strategy=strategy, max_new_tokens=30)
        assert (result.tokens, result.lossless) == (expected.tokens, "exact")


def test_buffers_have_room_for_little_more_than_the_text(model: Model) -> None:
    cache = model.decoder("full").full.cache
    assert cache.buffers[0].read().shape[2] == FIRST_CAPACITY
    cache.restore([np.full((rows.shape[0], 9, rows.shape[2]), 7, rows.dtype) for rows in cache.rows(9)], 9)
    assert cache.reserve(FIRST_CAPACITY + 1, 9)
    assert all(buffer.read().shape[2] == FIRST_CAPACITY + INT8_STEP for buffer in cache.buffers)
    assert all((rows == 7).all() for rows in cache.rows(9))
    assert [array.dtype for array in cache.arrays[:2]] == [np.uint8, np.int8]


def test_going_back_leaves_no_trace(model: Model) -> None:
    ids = model.encode(LONG_STORY)[:60]
    full = model.decoder("full").full
    expected = full.step(ids[:16], keep=1).copy()
    full.step(ids[16:32], keep=1)
    full.crop(0)
    assert np.array_equal(full.step(ids[:16], keep=1), expected)


def test_saved_and_loaded_or_copied_a_conversation_goes_on_the_same(model: Model, tmp_path: Path) -> None:
    chat = model.conversation(system="You tell stories.")
    list(chat.send("Tell me of a fox.", strategy="verify", max_new_tokens=12))
    chat.save(tmp_path / "chat.safetensors")
    others = [model.load_conversation(tmp_path / "chat.safetensors"), chat.fork()]
    answers = [
        [token.id for token in each.send("And then?", strategy="verify", max_new_tokens=12)] for each in (chat, *others)
    ]
    assert answers[0] == answers[1] == answers[2]


def test_rows_of_floats_are_refused(model: Model, int8_bundle: Path, tmp_path: Path) -> None:
    chat = recycle_onnx.load(int8_bundle, threads=1).conversation()
    list(chat.send("Tell me of a fox.", max_new_tokens=2))
    chat.save(tmp_path / "chat.safetensors")
    with pytest.raises(InputError, match=r"another model|bundle|float32"):
        model.load_conversation(tmp_path / "chat.safetensors")

"""Caches and hidden states on the devices of the providers that are asked for, against the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.runtime.decoding import kv_cache
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.model import Model

PROMPT = "the cat sat on the mat and the cat"
STRATEGIES = ("full", "alternate", "verify", "lookup", "auto")


def halves(decoder: Decoder) -> list[Half]:
    assert decoder.recycler is not None
    return [decoder.full, decoder.recycler]


def ran(model: Model, strategy: str = "verify") -> Decoder:
    generation = model.stream(PROMPT, strategy=strategy, max_new_tokens=4)
    list(generation)
    return generation.decoder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_text_is_that_of_the_cpu(strategy: str, small_model: Model, plain_model: Model) -> None:
    found = small_model.generate(PROMPT, strategy=strategy, max_new_tokens=12)
    expected = plain_model.generate(PROMPT, strategy=strategy, max_new_tokens=12)
    assert found.tokens == expected.tokens
    if strategy != "auto":  # which goes by the time that steps take
        assert (found.stats.full_runs, found.recycled) == (expected.stats.full_runs, expected.recycled)


def test_only_the_cpus_own_sums_are_the_same_for_one_row_and_several(small_model: Model) -> None:
    exact = small_model.provider == "cpu" and small_model.bundle.manifest.precision == "fp32"
    result = small_model.generate(PROMPT, strategy="verify", max_new_tokens=2)
    assert result.lossless == ("exact" if exact else "within_rounding")


def test_a_chain_hands_the_modules_own_states_on(small_model: Model, plain_model: Model) -> None:
    settings = {"strategy": "verify", "chain": 3, "max_new_tokens": 12}
    found, expected = small_model.generate(PROMPT, **settings), plain_model.generate(PROMPT, **settings)
    assert (found.tokens, found.stats.proposed, found.stats.accepted) == (
        expected.tokens, expected.stats.proposed, expected.stats.accepted,
    )  # fmt: skip


def test_every_bound_cache_lies_where_its_session_reads_it(small_model: Model) -> None:
    for half in halves(ran(small_model)):
        infos = zip(half.session.get_inputs(), half.session.get_input_memory_infos(), strict=True)
        host = {value.name: info.name == "Cpu" for value, info in infos}
        assert list(half.cache.devices) == half.spec.past_names()
        for name, device in half.cache.devices.items():
            assert (device == "cpu") == host[name], name


def test_no_cache_is_copied_to_the_host_while_tokens_come(small_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = ran(small_model)
    buffers = [buffer for half in halves(decoder) for buffer in half.cache.buffers]
    copied = []
    for buffer in buffers:
        monkeypatch.setattr(buffer, "read", lambda: copied.append("read"))
        monkeypatch.setattr(buffer, "write_rows", lambda _: copied.append("write"))
    values = [buffer.value for buffer in buffers]
    list(small_model.stream(PROMPT, strategy="verify", max_new_tokens=8, decoder=decoder))
    assert copied == []
    assert [buffer.value for half in halves(decoder) for buffer in half.cache.buffers] == values


def test_states_stay_on_a_device_that_both_halves_share(small_model: Model) -> None:
    full, module = halves(ran(small_model, "alternate"))
    written = full.writes["hidden_states"]
    assert (full.states.on_device(2) is not None) == (not written.is_host and written == module.reads["hidden_states"])


def test_caches_grow_with_what_they_hold(
    small_model: Model, plain_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_model.generate(PROMPT, strategy="alternate", max_new_tokens=24).tokens
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 16)
    decoder = small_model.decoder("alternate")
    for limit in (4, 24):
        generation = small_model.stream(PROMPT, strategy="alternate", max_new_tokens=limit, decoder=decoder)
        tokens = [token.id for token in generation]
    assert tokens == expected
    assert {half.cache.capacity for half in halves(decoder)} == {64}


def test_a_saved_conversation_goes_on_elsewhere(small_model: Model, plain_model: Model, tmp_path: Path) -> None:
    for number, (first, second) in enumerate([(small_model, plain_model), (plain_model, small_model)]):
        chat = first.conversation()
        list(chat.send("the cat", max_new_tokens=5))
        chat.save(tmp_path / f"{number}.chat")
        loaded = second.load_conversation(tmp_path / f"{number}.chat")
        for own, other in zip(chat.decoder.full.rows(), loaded.decoder.full.rows(), strict=True):
            np.testing.assert_array_equal(own, other)
        expected = [token.id for token in chat.send("and a hen", max_new_tokens=6)]
        answer = loaded.send("and a hen", max_new_tokens=6)
        assert [token.id for token in answer] == expected
        assert answer.result.stats.reused_tokens > 0

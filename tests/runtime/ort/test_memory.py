"""Buffers on a device. Without a GPU the device is a second kind of host memory: all that a GPU's would take runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import recycle_onnx
from recycle_onnx.contract import FloatType
from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.decoding import kv_cache
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort import memory
from recycle_onnx.runtime.ort.memory import HOST, Buffer, DeviceBuffer, DeviceMemory, Shape

PROMPT = "the cat sat on the mat and the cat"
STRATEGIES = ("full", "alternate", "verify", "lookup")


@dataclass(frozen=True)
class StandIn(DeviceMemory):
    """Memory that ONNX Runtime has allocated, and numpy is not to touch."""

    def zeros(self, shape: Shape, dtype: FloatType) -> Buffer:
        return DeviceBuffer(ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, "cpu"), dtype)


@pytest.fixture
def device_model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """One whose sessions say that they read and write everything on a device."""
    monkeypatch.setattr(memory, "_of", lambda info: StandIn(info.name, info.device_vendor_id, info.device_id))
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 16)  # so that buffers grow
    with recycle_onnx.load(tiny_bundle) as model:
        yield model


def expected_tokens(bundle: Path, strategy: str, **settings: int) -> list[int]:
    return recycle_onnx.load(bundle).generate(PROMPT, strategy=strategy, max_new_tokens=24, **settings).tokens


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_device_gives_the_hosts_text(
    strategy: str, tiny_bundle: Path, device_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = device_model.stream(PROMPT, strategy=strategy, max_new_tokens=24)
    tokens = [token.id for token in generation]
    cache = generation.decoder.full.cache
    assert all(isinstance(buffer, DeviceBuffer) for buffer in cache.buffers)
    assert cache.capacity > 16
    monkeypatch.undo()
    assert tokens == expected_tokens(tiny_bundle, strategy)


def test_a_chain_on_a_device(tiny_bundle: Path, device_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = device_model.generate(PROMPT, strategy="verify", chain=4, max_new_tokens=24).tokens
    monkeypatch.undo()
    assert tokens == expected_tokens(tiny_bundle, "verify", chain=4)


def test_states_go_from_half_to_half_without_the_host(device_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the negative: what lies on the device is what the module reads."""
    generation = device_model.stream(PROMPT, strategy="alternate", max_new_tokens=24)
    tokens = [next(generation).id for _ in range(6)]
    states = generation.decoder.full.states
    buffer = states._buffers[2]
    read: list[None] = []
    monkeypatch.setattr(buffer, "read", lambda: read.append(None))
    tokens += [token.id for token in generation]
    assert read == []

    again = device_model.stream(PROMPT, strategy="alternate", max_new_tokens=24)
    for _ in range(6):
        next(again)
    kept = again.decoder.full.states._buffers[2]
    zeros = StandIn("", 0, 0).zeros((1, 2, kept.read().shape[2]), "float32")
    monkeypatch.setattr(again.decoder.full.states, "on_device", lambda rows: zeros)
    assert [*again.tokens, *(token.id for token in again)] != tokens


def test_a_conversation_moves_between_device_and_host(
    tiny_bundle: Path, device_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = device_model.conversation()
    list(chat.send("the cat", max_new_tokens=4))
    chat.save(tmp_path / "saved")
    back = device_model.load_conversation(tmp_path / "saved")
    monkeypatch.undo()
    there = recycle_onnx.load(tiny_bundle).load_conversation(tmp_path / "saved")
    answers = [[token.id for token in one.send("a hen", max_new_tokens=4)] for one in (chat, back, there)]
    assert answers[0] == answers[1] == answers[2]


def test_a_device_starts_without_what_was_there_before() -> None:
    value = ort.OrtValue.ortvalue_from_shape_and_type([1, 1, 4, 2], np.float32, "cpu")
    value.update_inplace(np.full((1, 1, 4, 2), np.nan, np.float32))
    buffer = DeviceBuffer(value, "float32")
    np.testing.assert_array_equal(buffer.read(), np.zeros((1, 1, 4, 2)))
    buffer.write_rows(np.ones((1, 1, 3, 2), np.float32))
    np.testing.assert_array_equal(buffer.read()[0, 0, :, 0], [1, 1, 1, 0])


def test_places_are_equal_where_tensors_can_be_shared() -> None:
    assert DeviceMemory("Cuda", 0x10DE, 0) == DeviceMemory("Cuda", 0x10DE, 0)
    assert DeviceMemory("Cuda", 0x10DE, 0) != DeviceMemory("Cuda", 0x10DE, 1)
    assert DeviceMemory("Cuda", 0x10DE, 0) != HOST


def test_a_device_that_cannot_allocate_is_one_line() -> None:
    with pytest.raises(RecycleError, match=r"Nowhere: no memory for 4 MB of a text's caches \(") as refused:
        DeviceMemory("Nowhere", 0x10DE, 7).zeros((1, 1000, 1000, 1), "float32")
    assert "\n" not in str(refused.value)

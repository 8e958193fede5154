"""Sessions with fewer threads: loaded once steps are disturbed, exchanged within a text, and with the same logits."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as enumerate_threads
from typing import Any
from weakref import ref

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import Kind
from recycle_onnx.errors import RecycleError
from recycle_onnx.machine.memory import SystemMemory
from recycle_onnx.runtime.decoding import equal_threads, fewer_threads, thread_choice
from recycle_onnx.runtime.decoding.equal_threads import same_runs
from recycle_onnx.runtime.decoding.fewer_threads import FewerThreads
from recycle_onnx.runtime.decoding.half import Half, OtherSession
from recycle_onnx.runtime.decoding.thread_choice import KEEP_SECONDS
from recycle_onnx.runtime.decoding.trials import places
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort import prepacked
from recycle_onnx.runtime.ort.prepacked import open_prepacked
from recycle_onnx.runtime.ort.providers import Place
from recycle_onnx.runtime.ort.sessions import Opener, open_original
from tests.helpers.prompts import LONG_STORY

ROWS = 1000
"""Tokens of the steps that are told of: no real step has so many, so that none is compared with them."""
FAST, SLOW = 10.0, 100.0
"""Their seconds: real steps of a small model between them are nothing beside it."""


@pytest.fixture(scope="module", params=["sample", "int8", "int4"])
def bundle(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"{request.param}_bundle")
    return folder


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two cores to leave one of, whatever is here."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def threads_of(model: Model) -> FewerThreads:
    threads = model._halves._fewer_threads
    assert threads is not None
    return threads


def tell(threads: FewerThreads, seconds: dict[bool, float], steps: int) -> None:
    """Tell of steps that take so long on all threads and on fewer; a window has two."""
    for _ in range(steps):
        fewer = threads.sessions() is not None
        threads.took(ROWS, ROWS, seconds[fewer], fewer=fewer)


def disturb(threads: FewerThreads) -> None:
    """Tell of a disturbance, wait for the sessions that it asks for, and tell that they are faster."""
    tell(threads, {False: FAST}, 2)
    tell(threads, {False: SLOW}, 4)
    assert threads._loader is not None
    threads._loader.join()
    tell(threads, {False: SLOW, True: FAST}, 16)


@pytest.mark.parametrize("strategy", ["full", "verify"])
def test_a_text_is_the_same_on_fewer_threads_from_some_token_on(bundle: Path, strategy: str) -> None:
    wanted: dict[str, Any] = {"strategy": strategy, "max_new_tokens": 60, "stop_ids": ()}
    expected = recycle_onnx.load(bundle, threads=2, fixed_threads=True).generate(LONG_STORY, **wanted)
    with recycle_onnx.load(bundle, threads=2) as model:
        generation = model.stream(LONG_STORY, **wanted)
        for _ in range(20):
            next(generation)
        disturb(threads_of(model))
        result = generation.finish()
    assert result.tokens == expected.tokens
    assert (result.stats.full_runs, result.stats.accepted) == (expected.stats.full_runs, expected.stats.accepted)
    assert expected.stats.runs_on_fewer_threads == 0
    assert 0 < result.stats.runs_on_fewer_threads < result.stats.full_runs


def test_logits_and_caches_are_the_same_to_the_bit(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    for kind in opened.manifest.kinds:
        halves = [half(opened, kind, threads) for threads in (1, 2, 4)]
        assert same_runs(halves[0], halves[1])
        assert same_runs(halves[0], halves[2])


def test_bindings_follow_caches_that_grow_on_fewer_threads(int8_bundle: Path) -> None:
    """Buffers double at 256 rows; what is bound to the old ones would be written there."""
    opened = Bundle.open(int8_bundle)
    one, other, lent = (half(opened, "full", threads) for threads in (2, 2, 1))
    fewer = OtherSession(lent.session)
    one.step_on(fewer)
    for token in range(260):
        np.testing.assert_array_equal(one.step([token], keep=1), other.step([token], keep=1))
    assert fewer.calls
    one.step_on(None)
    assert not fewer.calls


def test_other_weights_are_seen_by_the_trial(int8_bundle: Path, int4_bundle: Path) -> None:
    one, other = (half(Bundle.open(folder), "full", 1) for folder in (int8_bundle, int4_bundle))
    assert not same_runs(one, other)


class WithoutLateRows(Half):
    """A half that takes over no more than 300 rows of a text."""

    def restore(self, tokens: list[int], past: list[NDArray[Any]], start: int = 0, dropped: int = 0) -> None:
        early = [rows.copy() for rows in past]
        for rows in early:
            rows[:, 300:] = 0
        super().restore(tokens, early, start, dropped)


def test_a_difference_behind_long_texts_is_seen_by_the_trial(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(int8_bundle)
    one = half(bundle, "full", 1)
    other = WithoutLateRows(half(bundle, "full", 1).session, one.spec, bundle.manifest.context_length)
    assert not same_runs(one, other)
    monkeypatch.setattr(equal_threads, "LONG_BYTES", 290 * one.spec.row_bytes)
    assert equal_threads.long_place(one) == (290, 298)
    assert same_runs(one, other)


@pytest.mark.parametrize("context", [3, 9, 12, 64])
def test_a_short_context_is_never_exceeded(int8_bundle: Path, context: int) -> None:
    bundle = Bundle.open(int8_bundle)
    short = Half(half(bundle, "full", 1).session, bundle.manifest.graphs["full"], context)
    start, end = equal_threads.long_place(short)
    assert 1 <= start < end < context


def half(bundle: Bundle, kind: Kind, threads: int) -> Half:
    session = open_original(bundle, kind, "cpu", threads)
    return Half(session, bundle.manifest.graphs[kind], bundle.manifest.context_length)


def test_sessions_that_give_other_logits_are_never_used(
    int8_bundle: Path, int4_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))

    def other_on_one_thread(bundle: Bundle, kind: Kind, place: Place, threads: int | None) -> ort.InferenceSession:
        return open_original(Bundle.open(int4_bundle) if threads == 1 else bundle, kind, place, threads)

    model = Model(Bundle.open(int8_bundle), "cpu", 2, other_on_one_thread, fixed_threads=False)
    disturb(threads_of(model))
    assert threads_of(model).sessions() is None
    assert len(list((tmp_path / "equal_runs").glob("*-cpu-2-as-1.json"))) == 1


def test_nothing_is_loaded_before_it_is_needed_nor_kept_after_the_model_was_closed(int8_bundle: Path) -> None:
    model = recycle_onnx.load(int8_bundle, threads=2)
    threads = threads_of(model)
    model.generate(LONG_STORY, max_new_tokens=8)
    assert threads._loader is None
    disturb(threads)
    decoder = model.decoder("verify")
    decoder.prefill(model.encode(LONG_STORY))
    decoder.full_step([5], keep=1)
    assert decoder.work.runs_on_fewer_threads == 1
    sessions = [ref(other.session) for other in threads.sessions() or () if other]
    assert len(sessions) == 2
    model.close()
    gc.collect()
    assert [session() for session in sessions] == [None, None]
    assert threads.sessions() is None


@pytest.mark.parametrize("writes", [True, False])
def test_a_quiet_minute_lets_go_of_them_though_texts_wait_and_nobody_writes(int8_bundle: Path, writes: bool) -> None:
    with recycle_onnx.load(int8_bundle, threads=2) as model:
        threads = threads_of(model)
        disturb(threads)
        generation = model.stream(LONG_STORY, strategy="verify", max_new_tokens=20)
        for _ in range(6):
            next(generation)
        assert generation.finish().stats.runs_on_fewer_threads > 0
        chat = generation.decoder
        sessions = [ref(other.session) for other in threads.sessions() or () if other]
        if writes:
            tell(threads, {False: FAST, True: FAST}, 12)
        assert not threads.let_go_if_unused(time.perf_counter())
        assert threads.let_go_if_unused(time.perf_counter() + KEEP_SECONDS + 1)
        gc.collect()
        assert [session() for session in sessions] == [None, None]
        before = chat.work.runs_on_fewer_threads
        chat.full_step([5], keep=1)
        assert chat.work.runs_on_fewer_threads == before
        disturb(threads)  # and they come back
        assert threads.sessions() is not None


def test_a_thread_lets_go_of_them_where_no_step_follows(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_threads, "LOOK_SECONDS", 0.01)
    model = recycle_onnx.load(int8_bundle, threads=2)
    threads, before = threads_of(model), set(enumerate_threads())
    tell(threads, {False: FAST}, 2)
    tell(threads, {False: SLOW}, 4)
    assert threads._loader is not None
    threads._loader.join()
    assert threads._sessions is not None
    monkeypatch.setattr(thread_choice, "KEEP_SECONDS", -1.0)
    for thread in set(enumerate_threads()) - before:
        thread.join()
    assert threads._sessions is None
    assert threads._loader is None


def test_a_closed_model_is_not_waited_for_and_loads_nothing_more(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    opened, began, may_go_on = [], Event(), Event()

    def slow(bundle: Bundle, kind: Kind, place: Place, threads: int | None) -> ort.InferenceSession:
        session = open_original(bundle, kind, place, threads)
        if threads == 1:
            opened.append(ref(session))
            began.set()
            may_go_on.wait()
        return session

    model = Model(Bundle.open(int8_bundle), "cpu", 2, slow, fixed_threads=False)
    threads = threads_of(model)
    tell(threads, {False: FAST}, 2)
    tell(threads, {False: SLOW}, 4)
    began.wait()
    loader = threads._loader
    model.close()  # returns while the first one is loaded
    may_go_on.set()
    assert loader is not None
    loader.join()
    gc.collect()
    assert [session() for session in opened] == [None]
    assert threads.sessions() is None
    assert not list(tmp_path.glob("equal_runs/*"))  # no trial


def test_a_trial_ends_with_the_model_and_leaves_no_outcome(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    model = recycle_onnx.load(int8_bundle, threads=2, fixed_threads=False)
    closing = Thread(target=model.close)

    def close_and_go_on(half: Half) -> Iterator[tuple[int, int]]:
        closing.start()
        closing.join()
        return places(half)

    monkeypatch.setattr(equal_threads, "places", close_and_go_on)
    threads = threads_of(model)
    tell(threads, {False: FAST}, 2)
    tell(threads, {False: SLOW}, 4)
    assert threads._loader is not None
    threads._loader.join()
    assert closing.ident is not None
    assert not list(tmp_path.glob("equal_runs/*"))


@pytest.mark.parametrize("writable", [True, False])
def test_prepacked_ones_are_mapped_or_not_loaded_and_the_cache_stays(
    int8_bundle: Path, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(cache))
    if not writable:
        cache.write_text("a file where the folder should be")
    model = recycle_onnx.load(int8_bundle, threads=2, prepacked=True)
    disturb(threads_of(model))
    assert (threads_of(model)._sessions is not None) == writable


def test_prepacked_ones_that_cannot_be_loaded_leave_the_cache_to_the_model(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    model = recycle_onnx.load(int8_bundle, threads=2, prepacked=True)

    def refuse(*_: object) -> None:
        raise RecycleError("too little memory")

    monkeypatch.setattr(prepacked, "open_session", refuse)
    disturb(threads_of(model))
    assert threads_of(model)._sessions is None
    assert len(list(tmp_path.glob(f"prepacked/*/*/{prepacked.WEIGHTS}"))) == 2


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 2, "fixed_threads": True}], ids=str)
def test_one_thread_and_a_fixed_number_stay_what_they_are(int8_bundle: Path, settings: dict[str, Any]) -> None:
    assert recycle_onnx.load(int8_bundle, **settings)._halves._fewer_threads is None


def test_where_addresses_are_limited_no_thread_is_started_for_other_sessions(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewer_threads, "addresses_are_limited", lambda: True)
    assert recycle_onnx.load(int8_bundle, threads=2)._halves._fewer_threads is None


def test_a_process_that_may_start_no_threads_keeps_those_it_has(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    model = recycle_onnx.load(int8_bundle, threads=2)
    monkeypatch.setattr(Thread, "start", refuse)
    tell(threads_of(model), {False: FAST}, 2)
    tell(threads_of(model), {False: SLOW}, 40)
    assert threads_of(model).sessions() is None
    model.close()


def test_sessions_in_an_applications_global_pool_have_no_threads_to_leave(int8_bundle: Path) -> None:
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    assert not FewerThreads.possible((Pooled(options), None))
    options.use_per_session_threads = True
    assert FewerThreads.possible((Pooled(options), None))


class Pooled:
    """What is asked of a session; a real one would need a pool for this whole process."""

    def __init__(self, options: ort.SessionOptions) -> None:
        self.get_session_options = lambda: options


@pytest.mark.parametrize(
    ("free_parts", "opener", "fits"),
    [(9, open_original, True), (7, open_original, False), (7, open_prepacked, True)],
)
def test_copies_of_the_weights_are_made_where_an_eighth_of_the_free_memory_holds_them(
    int8_bundle: Path, free_parts: int, opener: Opener, fits: bool
) -> None:
    model = recycle_onnx.load(int8_bundle, threads=2)
    weights = sum(file.stat().st_size for file in int8_bundle.glob("*.data"))
    threads = FewerThreads(model.bundle, (model.decoder("full").full.session, None), opener)
    assert threads._fits(SystemMemory(None, free_parts * weights, None, None)) == fits


def test_a_prompt_between_steps_on_fewer_threads_has_the_same_logits(int8_bundle: Path) -> None:
    model = recycle_onnx.load(int8_bundle, threads=2)
    disturb(threads_of(model))
    decoder = model.decoder("full")
    expected = recycle_onnx.load(int8_bundle, threads=1).decoder("full")
    ids = model.encode(LONG_STORY)
    decoder.prefill(ids)
    assert decoder.work.runs_on_fewer_threads == 0
    decoder.full_step([5], keep=1)
    np.testing.assert_array_equal(decoder.prefill([*ids, 5, 6, 7]), expected.prefill([*ids, 5, 6, 7]))
    assert decoder.work.runs_on_fewer_threads == 0

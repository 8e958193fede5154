"""A model in an application: threads, asyncio, cancellation, closing, progress."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from weakref import ref

import pytest

import recycle_onnx
from recycle_onnx.errors import RecycleError
from recycle_onnx.export import export
from recycle_onnx.runtime.decoding.processors import Floats, Ids
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE
from tests.helpers.prompts import LONG_STORY

PROMPT = "the cat sat on"
LONG = "the dog ran to the pen and sat on the mat. " * 60
STRATEGIES = ("auto", "full", "alternate", "verify", "lookup")
REQUESTS, THREADS = 200, 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with room for long texts, that ends none."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(context_length=4096), seed=2)
    (folder / "model" / "generation_config.json").write_text("{}")
    export(folder / "model", folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def model(bundle: Path) -> Iterator[Model]:
    with recycle_onnx.load(bundle, threads=1) as loaded:
        loaded.prefill_chunk = 16
        yield loaded


def test_threads_share_a_model_and_get_what_they_would_alone(model: Model) -> None:
    """Some 200 requests, a third of them cancelled at some point by another thread."""
    jobs = [
        {"strategy": STRATEGIES[n % 5], "max_new_tokens": 4 + n % 13, "temperature": n % 3 / 2, "seed": n % 7}
        for n in range(REQUESTS)
    ]
    expected = {n: model.generate(PROMPT, **job).tokens for n, job in enumerate(jobs)}
    dice = random.Random(1)
    delays = [dice.random() * 0.01 if dice.random() < 0.35 else None for _ in jobs]
    cancelled_at_once = next(n for n, delay in enumerate(delays) if delay is not None)
    delays[cancelled_at_once] = 0.0

    def work(n: int) -> tuple[list[int], str]:
        generation = model.stream(PROMPT, **jobs[n])
        delay = delays[n]
        if delay is not None:
            canceller = threading.Timer(delay, generation.cancel)
            canceller.start()
            if not delay:  # one at least, however late threads come to their turn; and some have no canceller
                canceller.join()
        tokens = [token.id for token in generation]
        return tokens, generation.result.finish_reason

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, range(REQUESTS), timeout=PATIENCE))
    reasons = [reason for _, reason in results]
    assert set(reasons) == {"length", "cancelled"}
    for n, (tokens, reason) in enumerate(results):
        if reason == "cancelled":
            assert tokens == expected[n][: len(tokens)]
            assert delays[n] is not None
        else:
            assert tokens == expected[n]


def test_conversations_of_threads_do_not_meet(model: Model) -> None:
    def talk(n: int) -> list[int]:
        chat = model.conversation(system=f"number {n}")
        return [
            token.id
            for turn in range(4)
            for token in chat.send(f"turn {turn}", max_new_tokens=8, strategy=STRATEGIES[turn])
        ]

    alone = [talk(n) for n in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(talk, range(THREADS), timeout=PATIENCE)) == alone


def test_two_threads_in_one_generation_are_told(model: Model) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        inside.set()
        go_on.wait(PATIENCE)

    chat = model.conversation()
    answer = chat.send(LONG, max_new_tokens=4, progress=hold)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, answer)
        assert inside.wait(PATIENCE)
        for attempt in (lambda: next(answer), lambda: chat.send("more"), chat.fork, lambda: chat.save("nowhere")):
            with pytest.raises(RecycleError, match=r"another thread is using.*chat\.fork"):
                attempt()
        go_on.set()
        assert first.result(PATIENCE).id == model.generate(answer.prompt, max_new_tokens=1).tokens[0]
    assert len(list(answer)) == 3


def test_a_long_prompt_is_reported_and_can_be_cancelled_after_each_chunk(model: Model) -> None:
    seen: list[tuple[int, int]] = []
    generation = model.stream(LONG, max_new_tokens=2, progress=lambda done, total, what: seen.append((done, total)))
    prompt = len(generation.prompt)
    next(generation)
    assert seen == [(min(16 * n, prompt), prompt) for n in range(1, -(-prompt // 16) + 1)]

    chat = model.conversation()
    answer = chat.send(LONG, progress=lambda done, total, what: answer.cancel() if done == 64 else None)
    assert list(answer) == []
    assert answer.result.finish_reason == "cancelled"
    assert chat.decoder.full.length == 80  # the chunk in which it was cancelled, and the one that noticed
    again = chat.send("more", max_new_tokens=3)
    text = chat.template.render([*chat.messages[:3]])
    assert [token.id for token in again] == model.generate(text, max_new_tokens=3).tokens


def test_it_can_be_cancelled_while_the_module_reads_it_too(model: Model) -> None:
    whole = 0

    def cancel(done: int, total: int, _: str) -> None:
        nonlocal whole
        whole += done == total
        if whole == 3:  # the full model has read it all; so has the module of its second chunk
            answer.cancel()

    chat = model.conversation()
    answer = chat.send(LONG, strategy="verify", progress=cancel)
    assert len(list(answer)) == 1
    assert answer.result.finish_reason == "cancelled"
    assert chat.decoder.recycler is not None
    assert chat.decoder.recycler.runs == 3
    again = chat.send("more", strategy="verify", max_new_tokens=3)
    tokens = [token.id for token in again]
    assert tokens == model.generate(again.prompt, strategy="full", max_new_tokens=3).tokens


def test_a_generation_that_is_cancelled_says_so_at_once(model: Model) -> None:
    generation = model.stream(PROMPT, max_new_tokens=5)
    next(generation)
    generation.cancel()
    assert generation.result.finish_reason == "cancelled"
    chat = model.conversation()
    answer = chat.send(PROMPT)
    next(answer)
    chat.send("more")
    assert answer.result.finish_reason == "cancelled"


def test_closing_does_not_wait_for_what_waits_for_it(bundle: Path) -> None:
    """A step in progress that asks for other caches: a processor that generates, or a fork."""
    model, in_step, told = recycle_onnx.load(bundle, threads=1), threading.Event(), list[str]()

    def nested(_: Ids, logits: Floats) -> Floats:
        in_step.set()
        while not told:  # until somebody waits for this step
            try:
                model.generate(PROMPT, max_new_tokens=1)
            except RecycleError as error:
                told.append(str(error))
        return logits

    def run() -> None:
        with suppress(RecycleError):  # closed before the next token
            model.generate(PROMPT, processors=[nested], max_new_tokens=1)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    assert in_step.wait(PATIENCE)
    closing = threading.Thread(target=model.close, daemon=True)
    closing.start()
    for thread in (running, closing):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert told == ["the model was closed; load it again"]


def test_cancelling_takes_effect_within_a_step(model: Model) -> None:
    def hold(read: Ids, logits: Floats) -> Floats:
        if len(read) > 5 + len(model.encode(PROMPT)):
            in_step.set()
            assert go_on.wait(PATIENCE)
        return logits

    for strategy in STRATEGIES:
        in_step, go_on = threading.Event(), threading.Event()
        generation = model.stream(PROMPT, strategy=strategy, processors=[hold])
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(list, generation)
            assert in_step.wait(PATIENCE)
            generation.cancel()
            runs = generation.decoder.full.runs
            go_on.set()
            made = running.result(PATIENCE)
        assert generation.decoder.full.runs <= runs + 1  # the one in progress
        assert generation.result.finish_reason == "cancelled"
        assert generation.result.tokens == [token.id for token in made]
        runs = generation.decoder.full.runs
        assert list(generation) == []
        assert generation.decoder.full.runs == runs


def test_a_finished_generation_stays_what_it_was_when_cancelled(model: Model) -> None:
    generation = model.stream(PROMPT, max_new_tokens=3)
    assert len(list(generation)) == 3
    generation.cancel()
    assert generation.result.finish_reason == "length"


def unhurried(_: Ids, logits: Floats) -> Floats:
    """Have a text to the context's end take twenty seconds at least, on any machine."""
    time.sleep(0.005)
    return logits


async def count(beats: list[None]) -> None:
    while True:
        await asyncio.sleep(0.001)
        beats.append(None)


def test_asyncio_goes_on_while_tokens_come(model: Model) -> None:
    """Each step, that of the prompt too, ends only when the loop has gone round three times since its beginning."""
    expected = model.generate(LONG, max_new_tokens=20)
    beats: list[None] = []

    def wait_for_the_loop(*_: object) -> None:
        until, end = len(beats) + 3, time.monotonic() + PATIENCE
        while len(beats) < until:
            assert time.monotonic() < end, "the loop stands still"
            time.sleep(0.001)

    def slow(_: Ids, logits: Floats) -> Floats:
        wait_for_the_loop()
        return logits

    async def main() -> list[int]:
        beating = asyncio.create_task(count(beats))
        generation = model.stream(LONG, max_new_tokens=20, processors=[slow], progress=wait_for_the_loop)
        tokens = [token.id async for token in generation]
        beating.cancel()
        return tokens

    assert asyncio.run(main()) == expected.tokens


def test_many_tasks_share_a_model(model: Model) -> None:
    jobs = [{"strategy": STRATEGIES[n % 5], "max_new_tokens": 12, "temperature": 1.0, "seed": n} for n in range(20)]

    async def one(job: dict[str, object]) -> list[int]:
        return [token.id async for token in model.stream(PROMPT, **job)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(one(job) for job in jobs))

    assert asyncio.run(main()) == [model.generate(PROMPT, **job).tokens for job in jobs]


def test_cancelling_a_task_cancels_the_generation_and_frees_the_caches(model: Model) -> None:
    async def main() -> tuple[str, list[int], list[int]]:
        chat = model.conversation()
        answer = chat.send(PROMPT)

        async def consume() -> None:
            async for _ in answer:
                pass

        task = asyncio.create_task(consume())
        while len(answer.tokens) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = chat.send("more", max_new_tokens=5)
        tokens = [token.id async for token in again]
        return answer.result.finish_reason, tokens, model.generate(again.prompt, max_new_tokens=5).tokens

    reason, tokens, expected = asyncio.run(main())
    assert reason in ("cancelled", "length")
    assert tokens == expected


def test_a_task_that_is_cancelled_twice_still_waits_for_its_step(model: Model) -> None:
    go_on = threading.Event()

    def slow(_: Ids, logits: Floats) -> Floats:
        go_on.wait(PATIENCE)
        return logits

    async def main() -> list[str]:
        chat = model.conversation()
        answer = chat.send(PROMPT, processors=[slow])
        task = asyncio.create_task(anext(answer))  # type: ignore[arg-type]
        for _ in range(3):
            await asyncio.sleep(0.02)
            task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = chat.send("more", max_new_tokens=3)
        return [str(token.id) async for token in again]

    assert len(asyncio.run(main())) == 3


def test_a_timeout_ends_a_generation(model: Model) -> None:
    async def main() -> tuple[int, str]:
        generation = model.stream(PROMPT, processors=[unhurried])

        async def consume() -> None:
            async for _ in generation:
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(consume(), 0.05)
        runs = generation.decoder.full.runs
        await asyncio.sleep(0.05)
        return generation.decoder.full.runs - runs, generation.result.finish_reason

    assert asyncio.run(main()) == (0, "cancelled")


def test_a_closed_model_says_so_and_has_freed_its_sessions(bundle: Path) -> None:
    with recycle_onnx.load(bundle, threads=1) as model:
        chat, generation = model.conversation(), model.stream(PROMPT, max_new_tokens=9)
        next(generation)
        sessions = [ref(half.session) for half in (chat.decoder.full, chat.decoder.recycler) if half is not None]
        assert len(sessions) == 2
    gc.collect()
    assert [session() for session in sessions] == [None, None]
    for use in (
        lambda: model.generate(PROMPT),
        lambda: next(generation),
        lambda: chat.send(PROMPT),
        lambda: model.conversation(),
        lambda: chat.fork(),
    ):
        with pytest.raises(RecycleError, match="the model was closed; load it again"):
            use()
    assert len(generation.result.tokens) == 1
    model.close()


def test_closing_waits_for_the_steps_in_progress(bundle: Path) -> None:
    model = recycle_onnx.load(bundle, threads=1)
    generations = [model.stream(PROMPT, processors=[unhurried]) for _ in range(4)]

    def consume(generation: object) -> str:
        try:
            return f"{len(list(generation))} tokens"  # type: ignore[call-overload]
        except RecycleError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(consume, generation) for generation in generations]
        while min(len(generation.tokens) for generation in generations) < 3:
            time.sleep(0.001)
        model.close()
        assert {future.result(PATIENCE) for future in running} == {"the model was closed; load it again"}


def test_a_callback_that_closes_the_model_is_told_so_and_does_no_harm(bundle: Path) -> None:
    model = recycle_onnx.load(bundle, threads=1)
    with pytest.raises(RecycleError, match="closed from within one of its own steps"):
        model.generate(PROMPT, max_new_tokens=2, progress=lambda *_: model.close())
    assert len(model.generate(PROMPT, max_new_tokens=2).tokens) == 2
    model.close()


@pytest.mark.parametrize("read", [0, 1, 5, 9])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_caches_are_freed_with_the_generation_and_not_some_time_later(model: Model, strategy: str, read: int) -> None:
    gc.collect()
    gc.disable()
    try:
        generation = model.stream(PROMPT, strategy=strategy, max_new_tokens=8)
        for _ in range(read):
            next(generation, None)
        if read == 5:
            generation.cancel()
        caches = ref(generation.decoder)
        del generation
        assert caches() is None
    finally:
        gc.enable()


def test_loading_says_how_far_it_is(bundle: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    recycle_onnx.load(bundle, progress=lambda *step: seen.append(step)).close()
    checks = [(done, total) for done, total, what in seen if what.startswith("check")]
    total = sum(file.bytes for file in recycle_onnx.load(bundle).bundle.manifest.files.values())
    assert checks[0] == (0, total)
    assert checks[-1] == (total, total)
    assert checks == sorted(checks)
    assert [what for _, _, what in seen[-3:]] == ["loading the full model", "loading the module", "loaded"]


def test_an_interrupted_step_leaves_the_caches_right(sample_model: Model) -> None:
    """As Ctrl-C does: it comes out of a run, of the module's or of the full model's, and is an exception."""
    for number in range(1, 9):
        chat = sample_model.conversation()
        answer = chat.send(LONG_STORY[:200], strategy="verify", chain=3, max_new_tokens=30)
        next(answer)
        with pytest.raises(KeyboardInterrupt):
            _interrupt(chat.decoder, answer, number)
        again = chat.send("And then?", strategy="alternate", max_new_tokens=12)
        expected = sample_model.generate(again.prompt, strategy="alternate", max_new_tokens=12, stop="\nUser:")
        assert [token.id for token in again] == expected.tokens


def _interrupt(decoder: object, answer: Iterator[object], number: int) -> None:
    """Go on until the session that runs as the `number`-th from now on raises after its work."""
    left = number

    class Interrupted:
        def __init__(self, session: object) -> None:
            self.session = session

        def run_with_iobinding(self, binding: object, options: object) -> None:
            nonlocal left
            left -= 1
            self.session.run_with_iobinding(binding, options)  # type: ignore[attr-defined]
            if left == 0:
                raise KeyboardInterrupt

        def io_binding(self) -> object:
            return self.session.io_binding()  # type: ignore[attr-defined]

    halves = [decoder.full, decoder.recycler]  # type: ignore[attr-defined]
    originals = [half.session for half in halves]
    for half in halves:
        half.session = Interrupted(half.session)
    try:
        for _ in answer:
            pass
    finally:
        for half, session in zip(halves, originals, strict=True):
            half.session = session

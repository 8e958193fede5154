"""Generations in threads of their own, a few at a time; the others wait in a queue, and the event loop never waits.

A slot belongs to a thread, not to the request: it is free when the thread has really stopped. That is one step after
the client has gone, and at once at the deadline, where the step in progress is interrupted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.generation import Generation, Result, Token
from recycle_onnx.runtime.ort.native import Interrupt
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.metrics import Metrics
from recycle_onnx.serve.orders import Order

T = TypeVar("T")
EndReason = Literal["stop", "length"]
"""Why a text ends; what an answer with calls makes of it is another matter."""
Generate = Callable[[Order], AbstractContextManager[Generation]]
"""Starts what was ordered, in the worker's thread; what it takes is given back at the end."""


@dataclass(frozen=True)
class Step:
    """A token of the answer `index`, and the recycled tokens proposed and accepted so far in it.

    `prompt_tokens` is the length of its prompt, of which `cached_tokens` had been read before.
    """

    token: Token
    proposed: int
    accepted: int
    index: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Outcome:
    """The whole of the answer `index`, and the stop string that ended it, if one did."""

    index: int
    tokens: list[Token]
    result: Result
    seed: int
    stop_string: str | None = None

    @property
    def reason(self) -> EndReason:
        """Why the text ends."""
        reason = self.result.finish_reason
        assert reason in ("stop", "length")  # whoever cancels does not ask, and an error is raised
        return reason


@dataclass(frozen=True)
class Value:
    """What a call has returned."""

    value: Any


Event = Step | Outcome | Value | Exception | None
"""What a thread tells the event loop; None is the end."""


class Task:
    """Some work in a worker's thread, which has a deadline and can be interrupted."""

    def __init__(self, seconds: float) -> None:
        self.made: list[Result] = []
        """What was generated when the thread became free, even if nobody wanted it any more."""
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(seconds, self._expire)  # whether or not anybody waits for it then
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._cancelled = False
        self._interrupt = Interrupt()

    def cancel(self) -> None:
        """End the work after the step in progress: nobody waits for the rest."""
        self._cancelled = True

    def stop(self, reason: ApiError) -> None:
        """End the work at once, in mid-step too, and tell why to whoever waits for it."""
        self.cancel()
        self._events.put_nowait(reason)
        self._interrupt.set()

    def _expire(self) -> None:
        self.stop(ApiError(504, "generation_timeout", f"the answer took more than {self._seconds:g} s"))

    def has_ended(self) -> None:
        """Note that the task's thread is free again."""
        self._deadline.cancel()

    def run(self) -> None:
        """Do the work, in a worker's thread."""
        try:
            with self._interrupt.of_this_thread():
                if not self._cancelled:
                    self._run()
        except Exception as error:
            self._emit(error)
        except BaseException as error:  # a panic in a library of Rust is one, and the client waits for an answer
            self._emit(_as_failure(error))

    def _run(self) -> None:
        raise NotImplementedError

    def _emit(self, event: Event) -> None:
        # asyncio's queue is not for threads: the loop puts the event in itself.
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


class Call(Task):
    """A function that is called in a worker's thread."""

    def __init__(self, function: Callable[[], Any], seconds: float) -> None:
        super().__init__(seconds)
        self._function = function

    def cancel(self) -> None:
        super().cancel()
        # A call has no tokens between which it could end by itself.
        self._interrupt.set()

    def _run(self) -> None:
        self._emit(Value(self._function()))

    async def value(self) -> Any:
        """Wait for what the function returns, or raise what it raises."""
        event = await self._next()
        assert isinstance(event, Value)
        return event.value


class Job(Task):
    """One generation after another, as an async iterator over their steps.

    `outcomes` has those of generations whose steps were taken; once the job is exhausted, all. One that is not
    `stepwise` has no steps, and does not wake the event loop until the end of a generation.
    """

    def __init__(self, orders: Sequence[Order], generate: Generate, seconds: float, stepwise: bool = True) -> None:
        super().__init__(seconds)
        self.orders = orders
        self.outcomes: list[Outcome] = []
        self._generate, self._stepwise = generate, stepwise
        self._generation: Generation | None = None

    @property
    def tokens(self) -> list[Token]:
        """The tokens of all answers that are whole."""
        return [token for outcome in self.outcomes for token in outcome.tokens]

    def cancel(self) -> None:
        super().cancel()
        if self._generation is not None:
            self._generation.cancel()

    def _run(self) -> None:
        for index, order in enumerate(self.orders):
            if self._cancelled:
                return
            with self._generate(order) as generation:
                self._generation = generation
                # Cancelled a moment ago, when `cancel` could not see this generation yet.
                if self._cancelled:
                    return
                try:
                    self._follow(generation, index)
                finally:
                    self.made.append(generation.result)
                made = generation.tokens, generation.result
                self._emit(Outcome(index, *made, order.config.seed, generation.stop_string))
        self._emit(None)

    def _follow(self, generation: Generation, index: int) -> None:
        prompt_tokens = len(generation.prompt)
        for token in generation:
            if self._stepwise:
                counts = generation.counts
                cached = generation.decoder.work.reused
                self._emit(Step(token, counts.proposed, counts.accepted, index, prompt_tokens, cached))

    def __aiter__(self) -> AsyncIterator[Step]:
        return self

    async def __anext__(self) -> Step:
        await asyncio.sleep(0)  # what is there already would be taken without a turn for anybody else
        while isinstance(event := await self._next(), Outcome):
            self.outcomes.append(event)
        if event is None:
            raise StopAsyncIteration
        assert isinstance(event, Step)
        return event


class Workers:
    """A thread for each slot, and a queue in front of them."""

    def __init__(self, generate: Generate, limits: Limits, metrics: Metrics) -> None:
        """Start no thread yet.

        `metrics` gets each generation's counts when its slot is free again, and shows how many run and wait.
        """
        self.generate, self.limits, self.metrics = generate, limits, metrics
        metrics.show("slots_busy", "Generations that run.", lambda: self.busy)
        metrics.show("queue_waiting", "Requests that wait for a slot.", lambda: self.waiting)
        self.waiting = 0
        self._free = asyncio.Semaphore(limits.slots)
        self._threads = ThreadPoolExecutor(limits.slots, thread_name_prefix="recycle-onnx-serve")
        self._running: set[Task] = set()
        self._closing = False

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._running)

    async def start(self, *orders: Order, stepwise: bool = True) -> Job:
        """Wait for a slot and start what was ordered in it, to be followed step by step or awaited as a whole.

        Raises:
            ApiError: 429 where the queue is full, 503 where the wait was too long or the server ends.
        """
        await self._take_slot()
        job = Job(orders, self.generate, self.limits.generation_seconds, stepwise)
        self._start(job)
        return job

    async def call(self, function: Callable[[], T]) -> T:
        """Wait for a slot, call a function in it and return what it returns; the runs of a cancelled one are ended.

        Raises:
            ApiError: as `start`, and 504 where it takes too long.
        """
        await self._take_slot()
        task = Call(function, self.limits.generation_seconds)
        self._start(task)
        try:
            value: T = await task.value()
        except BaseException:
            task.cancel()
            raise
        return value

    def _start(self, task: Task) -> None:
        self._running.add(task)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._threads, task.run).add_done_callback(lambda _: self._release(task))

    async def _take_slot(self) -> None:
        if self._free.locked() and self.waiting >= self.limits.queue:
            raise ApiError(429, "queue_full", f"{self.waiting} requests are waiting already", retry_after=1)
        self.waiting += 1
        try:
            async with asyncio.timeout(self.limits.queue_seconds):
                await self._free.acquire()
        except TimeoutError as error:
            seconds = self.limits.queue_seconds
            raise ApiError(503, "queue_timeout", f"no slot became free within {seconds:g} s", retry_after=5) from error
        finally:
            self.waiting -= 1
        if self._closing:
            self._free.release()  # for the next one that waits, to be told the same
            raise _shutting_down()

    def _release(self, task: Task) -> None:
        task.has_ended()
        self._running.discard(task)
        self._free.release()
        for result in task.made:
            self.metrics.count(result)

    def close(self) -> None:
        """Take no more orders, and end the generations in progress."""
        self._closing = True
        for task in self._running:
            task.stop(_shutting_down())


def _as_failure(error: BaseException) -> RecycleError:
    failure = RecycleError(f"a worker's thread was ended by {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _shutting_down() -> ApiError:
    return ApiError(503, "shutting_down", "the server is shutting down")

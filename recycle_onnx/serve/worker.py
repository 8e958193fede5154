"""Generations in threads of their own, a few at a time; the others wait in a queue, and the event loop never waits.

A slot belongs to a thread, not to the request: it is free when the thread has really stopped. That is one step after
the client has gone, and at once at the deadline, where the step in progress is interrupted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.generation import Generation, Result, Token
from recycle_onnx.runtime.ort.native import Interrupt
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.metrics import Metrics
from recycle_onnx.serve.orders import Order

Generate = Callable[[Order], AbstractContextManager[Generation]]
"""Starts what was ordered, in the worker's thread; what it takes is given back at the end."""


@dataclass(frozen=True)
class Step:
    """A token, and the recycled tokens proposed and accepted so far."""

    token: Token
    proposed: int
    accepted: int


Event = Step | Result | Exception


class Job:
    """One generation as an async iterator over its steps; `result` and `tokens` are set once it is exhausted.

    One that is not `stepwise` has no steps, and does not wake the event loop until its end.
    """

    def __init__(self, order: Order, seconds: float, stepwise: bool = True) -> None:
        self.order = order
        self.result: Result | None = None
        self.made: Result | None = None
        """What was generated when the thread became free, even if nobody wanted it any more."""
        self.tokens: list[Token] = []
        self._seconds, self._stepwise = seconds, stepwise
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(seconds, self._expire)  # whether or not anybody waits for it then
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._cancelled = False
        self._interrupt = Interrupt()
        self._generation: Generation | None = None

    def cancel(self) -> None:
        """End the generation after the step in progress: nobody waits for the rest."""
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    def stop(self, reason: ApiError) -> None:
        """End the generation at once, in mid-step too, and tell why to whoever waits for it."""
        self.cancel()
        self._events.put_nowait(reason)
        self._interrupt.set()

    def _expire(self) -> None:
        self.stop(ApiError(504, "generation_timeout", f"the answer took more than {self._seconds:g} s"))

    def has_ended(self) -> None:
        """Note that the job's thread is free again."""
        self._deadline.cancel()

    def run(self, generate: Generate) -> None:
        """Generate what was ordered, in a worker's thread."""
        try:
            with self._interrupt.of_this_thread():
                self._run(generate)
        except Exception as error:
            self._emit(error)
        except BaseException as error:  # a panic in a library of Rust is one, and the client waits for an answer
            self._emit(_as_failure(error))
        finally:
            if self._generation is not None:
                self.made = self._generation.result

    def _run(self, generate: Generate) -> None:
        if self._cancelled:
            return
        with generate(self.order) as generation:
            self._generation = generation
            if self._cancelled:
                return
            for token in generation:
                if self._stepwise:
                    self._emit(Step(token, generation.counts.proposed, generation.counts.accepted))
            self.tokens = generation.tokens
            self._emit(generation.result)

    def _emit(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def __aiter__(self) -> AsyncIterator[Step]:
        return self

    async def __anext__(self) -> Step:
        await asyncio.sleep(0)  # what is there already would be taken without a turn for anybody else
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Result):
            self.result = event
            raise StopAsyncIteration
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
        self._running: set[Job] = set()
        self._closing = False

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._running)

    async def start(self, order: Order, stepwise: bool = True) -> Job:
        """Wait for a slot and start what was ordered in it, to be followed step by step or awaited as a whole.

        Raises:
            ApiError: 429 where the queue is full, 503 where the wait was too long or the server ends.
        """
        await self._take_slot()
        job = Job(order, self.limits.generation_seconds, stepwise)
        self._running.add(job)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._threads, job.run, self.generate).add_done_callback(lambda _: self._release(job))
        return job

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

    def _release(self, job: Job) -> None:
        job.has_ended()
        self._running.discard(job)
        self._free.release()
        if job.made is not None:
            self.metrics.count(job.made)

    def close(self) -> None:
        """Take no more orders, and end the generations in progress."""
        self._closing = True
        for job in self._running:
            job.stop(_shutting_down())


def _as_failure(error: BaseException) -> RecycleError:
    failure = RecycleError(f"a worker's thread was ended by {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _shutting_down() -> ApiError:
    return ApiError(503, "shutting_down", "the server is shutting down")

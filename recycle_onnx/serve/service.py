"""What lies between a request and its answer, whatever API it is of: reading it, a slot, and writing the answer.

Each family of APIs has a file of its own with the requests that it reads and a `Form` in which it answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from recycle_onnx.serve import schema
from recycle_onnx.serve.engine import Engine
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits, check_pieces
from recycle_onnx.serve.orders import Order
from recycle_onnx.serve.token_decoder import TokenDecoder
from recycle_onnx.serve.worker import Job, Outcome, Step, Workers

logger = logging.getLogger(__name__)
T = TypeVar("T")
SMALL_BODY = 32 << 10
"""Bytes that are read at once, in 10 ms at most. What fits 4 MiB takes up to half a second, in steps of up to 0.2 s
between which others have their turn if it is another thread that takes them.
"""
MANY_TOKENS = 256
"""Tokens of an answer from which on it is written down in another thread: with their alternatives thousands are seconds
of work, for which all other clients would wait."""
EVENTS = "text/event-stream"


class Form(Protocol):
    """The way in which an API writes answers down: whole, or as the texts of a stream of the type `media`."""

    media: str

    def opening(self, first: Step) -> Iterable[str]:
        """Yield what comes before the first token."""

    def step(self, step: Step) -> Iterable[str]:
        """Yield what one token adds."""

    def end(self, outcome: Outcome) -> Iterable[str]:
        """Yield what says that one answer is whole, and why it ends."""

    def closing(self, outcomes: Sequence[Outcome]) -> Iterable[str]:
        """Yield what ends the stream of all answers."""

    def failure(self, error: ApiError) -> Iterable[str]:
        """Yield what ends the stream where something failed."""

    def whole(self, outcomes: Sequence[Outcome]) -> BaseModel:
        """Return the answer for a client that wants no stream."""


class Service:
    """A model behind HTTP."""

    def __init__(self, engine: Engine, name: str, limits: Limits, strict: bool = False) -> None:
        """Serve the model of `engine` under `name`; with `strict` requests that name another model are refused."""
        self.engine, self.name, self.limits, self.strict = engine, name, limits, strict
        self.metrics = engine.metrics
        self.workers = Workers(engine.generate, limits, self.metrics)
        self.decoder = TokenDecoder(engine.model.tokenizer)
        self.fingerprint = f"recycle-onnx-{engine.model.bundle.digest[:12]}"
        self.started = int(time.time())
        self._aside = asyncio.Lock()

    def check_name(self, name: str | None) -> None:
        """Refuse another model than the one that is served, where clients must name that.

        Raises:
            ApiError: 404.
        """
        if self.strict and name:
            self.check_own_name(name)

    def check_own_name(self, name: str) -> None:
        """Refuse any name but the model's own.

        Raises:
            ApiError: 404.
        """
        if name != self.name:
            message = f"no model {name[:100]!r} here; this server has {self.name!r}"
            raise ApiError(404, "model_not_found", message, "model")

    async def read(
        self, request: Request, kind: type[schema.AnyRequest], order_of: Callable[[schema.AnyRequest], T]
    ) -> tuple[schema.AnyRequest, T]:
        """Read a request; return it, and what `order_of` makes of it.

        A large body is read in another thread.

        Raises:
            ApiError: it makes no sense, is too large or too slow.
        """
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise ApiError(415, "not_json", f"the body is declared as {media or 'nothing'}; expected application/json")
        body = await self.limits.read_body(request)
        understand = partial(self._understood, body, kind, order_of)
        return understand() if len(body) <= SMALL_BODY else await self.aside(understand)

    async def aside(self, work: Callable[[], T]) -> T:
        """Do what takes a while in another thread: one thing at a time, as several would be no faster."""
        async with self._aside:
            return await asyncio.to_thread(work)

    def _understood(
        self, body: bytes, kind: type[schema.AnyRequest], order_of: Callable[[schema.AnyRequest], T]
    ) -> tuple[schema.AnyRequest, T]:
        check_pieces(body)
        asked = schema.parse(body, kind)
        self.check_name(asked.model)
        return asked, order_of(asked)

    async def call(self, request: Request, work: Callable[[], T]) -> T:
        """Do some work of the model's in a slot; where the client goes away it is ended.

        Raises:
            ApiError: there is no slot, or it takes too long.
        """
        return await _unless_gone(request, self.workers.call(work))

    async def answer(self, request: Request, orders: Sequence[Order], form: Form, stream: bool) -> Response:
        """Generate what was ordered, whole or as a stream; a client that disconnects ends it."""
        job = await _unless_gone(request, self.workers.start(*orders, stepwise=stream))
        try:
            if not stream:
                await _unless_gone(request, _exhaust(job))
                write = partial(_whole, form, job)
                return await asyncio.to_thread(write) if len(job.tokens) > MANY_TOKENS else write()
            first = await _unless_gone(request, anext(job))
        except BaseException:
            job.cancel()
            raise
        return _EventStream(job, _events(job, first, form), form.media)


class _EventStream(StreamingResponse):
    """A stream that ends its job when it ends, however it ends."""

    def __init__(self, job: Job, events: AsyncIterator[str], media: str) -> None:
        super().__init__(events, media_type=media)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _events(job: Job, first: Step, form: Form) -> AsyncIterator[str]:
    """Yield the texts of a stream; an error in mid-stream is the last one."""
    try:
        for text in (*form.opening(first), *form.step(first)):
            yield text
        ended = 0
        async for step in job:
            for text in (*_ends(form, job.outcomes[ended:]), *form.step(step)):
                yield text
            ended = len(job.outcomes)
        for text in (*_ends(form, job.outcomes[ended:]), *form.closing(job.outcomes)):
            yield text
    except Exception as error:
        for text in form.failure(reported(error)):
            yield text


def _ends(form: Form, outcomes: Sequence[Outcome]) -> Iterable[str]:
    return (text for outcome in outcomes for text in form.end(outcome))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, but no longer than the client is there.

    Raises:
        ClientDisconnect: it has closed the connection.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _exhaust(job: Job) -> None:
    async for _ in job:  # it has no steps
        pass


def _whole(form: Form, job: Job) -> Response:
    return as_json(form.whole(job.outcomes))


def as_json(answer: BaseModel) -> Response:
    """Return a response with the answer as JSON."""
    return Response(answer.model_dump_json(), media_type="application/json")


def reported(error: Exception) -> ApiError:
    """Return what a client is told of an error; one that is not the client's is logged."""
    told = ApiError.of(error)
    if told.status == 500:
        logger.error("a generation failed", exc_info=error)
    return told

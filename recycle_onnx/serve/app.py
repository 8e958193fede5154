"""The routes, and what lies between a request and its answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from recycle_onnx import __version__
from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.chat_template import PLAIN
from recycle_onnx.runtime.generation import Token
from recycle_onnx.serve import answers, openapi, orders, schema
from recycle_onnx.serve.access import guarded
from recycle_onnx.serve.answer_formats import AnswerFormat, ChatFormat, Label, TextFormat
from recycle_onnx.serve.engine import Engine
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits, check_pieces
from recycle_onnx.serve.metrics import Metrics, RequestCounter
from recycle_onnx.serve.orders import Order
from recycle_onnx.serve.page import page
from recycle_onnx.serve.token_decoder import TokenDecoder
from recycle_onnx.serve.worker import Job, Step, Workers

logger = logging.getLogger(__name__)
T = TypeVar("T")
SMALL_BODY = 32 << 10
"""Bytes that are read at once, in 10 ms at most. What fits 4 MiB takes up to half a second, in steps of up to 0.2 s
between which others have their turn if it is another thread that takes them.
"""
MANY_TOKENS = 256
"""Tokens of an answer from which on it is written down in another thread: with their alternatives thousands are seconds
of work, for which all other clients would wait."""
GONE = 499
"""Status of an answer that nobody gets, as nginx calls it; it is only counted."""


class Service:
    """A model behind HTTP."""

    def __init__(self, engine: Engine, name: str, limits: Limits, with_token: bool) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.metrics = Metrics()
        self.workers = Workers(engine.generate, limits, self.metrics)
        self.decoder = TokenDecoder(engine.model.tokenizer)
        self.fingerprint = f"recycle-onnx-{engine.model.bundle.digest[:12]}"
        self.started = int(time.time())
        self._reading = asyncio.Lock()
        self._document = openapi.document(__version__, with_token)

    def routes(self) -> list[Route]:
        """Return every route of the server."""
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completion, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        return page()

    async def health(self, request: Request) -> Response:
        workers = self.workers
        return _json(answers.Health(slots=self.limits.slots, slots_busy=workers.busy, queue_waiting=workers.waiting))

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def models(self, request: Request) -> Response:
        return _json(answers.ModelList(data=[self._card()]))

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["model"])
        return _json(self._card())

    async def chat(self, request: Request) -> Response:
        asked, order = await self._read(request, schema.ChatRequest, self._chat_order)
        form = ChatFormat(self._label("chatcmpl"), self.decoder, bool(asked.logprobs))
        return await self._answer(request, asked, order, form)

    async def completion(self, request: Request) -> Response:
        asked, order = await self._read(request, schema.CompletionRequest, self._text_order)
        form = TextFormat(self._label("cmpl"), self.decoder, asked.logprobs is not None)
        return await self._answer(request, asked, order, form)

    def _chat_order(self, asked: schema.ChatRequest) -> Order:
        return self.engine.order(orders.turns_of(asked), orders.chat_settings(asked, self.limits.schema_bytes))

    def _text_order(self, asked: schema.CompletionRequest) -> Order:
        return self.engine.order(orders.text_of(asked), orders.text_settings(asked))

    def _label(self, prefix: str) -> Label:
        return Label(self.name, self.fingerprint, prefix)

    def _card(self) -> answers.ModelCard:
        manifest = self.engine.model.bundle.manifest
        can = answers.ModelRecycle(
            strategies=list(manifest.strategies),
            default_strategy=manifest.default_strategy,
            chat=self.engine.template.name != PLAIN,
            context_length=manifest.context_length,
            precision=manifest.precision,
            parameters=manifest.base.get("parameters"),
        )
        return answers.ModelCard(id=self.name, created=self.started, recycle=can)

    def _check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise ApiError(
                404, "model_not_found", f"no model {name[:100]!r} here; this server has {self.name!r}", "model"
            )

    async def _read(
        self, request: Request, kind: type[schema.AnyRequest], order_of: Callable[[schema.AnyRequest], Order]
    ) -> tuple[schema.AnyRequest, Order]:
        """Read a request; return it, and the order that `order_of` makes of it.

        A large body is read in another thread.
        """
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise ApiError(415, "not_json", f"the body is declared as {media or 'nothing'}; expected application/json")
        body = await self.limits.read_body(request)
        if len(body) <= SMALL_BODY:
            return self._understood(body, kind, order_of)
        async with self._reading:  # several at once would be no faster, and take more memory
            return await asyncio.to_thread(self._understood, body, kind, order_of)

    def _understood(
        self, body: bytes, kind: type[schema.AnyRequest], order_of: Callable[[schema.AnyRequest], Order]
    ) -> tuple[schema.AnyRequest, Order]:
        check_pieces(body)
        asked = schema.parse(body, kind)
        self._check_name(asked.model)
        return asked, order_of(asked)

    async def _answer(
        self, request: Request, asked: schema.GenerationRequest, order: Order, form: AnswerFormat
    ) -> Response:
        """Generate, whole or as a stream; a client that disconnects ends its generation."""
        job = await _unless_gone(request, self.workers.start(order, bool(asked.stream)))
        try:
            if not asked.stream:
                tokens = await _unless_gone(request, _all(job))
                write = partial(self._whole, job, form, tokens)
                return await asyncio.to_thread(write) if len(tokens) > MANY_TOKENS else write()
            first = await _unless_gone(request, anext(job))
        except BaseException:
            job.cancel()
            raise
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return _EventStream(job, self._events(job, first, form, with_usage))

    def _whole(self, job: Job, form: AnswerFormat, tokens: list[Token]) -> Response:
        return _json(form.whole(tokens, *self._outcome(job)))

    async def _events(self, job: Job, first: Step, form: AnswerFormat, with_usage: bool) -> AsyncIterator[str]:
        """Yield server-sent events; an error in mid-stream is the last one."""
        try:
            for chunk in form.opening():
                yield _event(chunk)
            yield _event(form.chunk(first))
            async for step in job:
                yield _event(form.chunk(step))
            reason, usage = self._outcome(job)
            yield _event(form.ending(reason))
            if with_usage:
                yield _event(form.usage(usage))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"data: {json.dumps(_reported(error).body())}\n\n"

    def _outcome(self, job: Job) -> tuple[answers.FinishReason, answers.Usage]:
        result = job.result
        assert result is not None
        assert result.finish_reason != "cancelled"
        assert result.finish_reason != "error"
        return result.finish_reason, answers.Usage.of(result, job.order.config.seed)


class _EventStream(StreamingResponse):
    """A stream that ends its job when it ends, however it ends."""

    def __init__(self, job: Job, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


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


async def _all(job: Job) -> list[Token]:
    async for _ in job:  # it has no steps
        pass
    return job.tokens


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


def _reported(error: Exception) -> ApiError:
    reported = ApiError.of(error)
    if reported.status == 500:
        logger.error("a generation failed", exc_info=error)
    return reported


async def _on_error(request: Request, error: Exception) -> Response:
    return _reported(error).response()


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    response = ApiError(
        error.status_code, code, f"{request.method} {request.url.path[:100]}: {error.detail}"
    ).response()
    response.headers.update(error.headers or {})
    return response


def make_app(
    service: Service, token: str | None = None, local_names_only: bool = True, origins: frozenset[str] = frozenset()
) -> ASGIApp:
    """Return the server's ASGI application."""
    routes = service.routes()
    handlers = {HTTPException: _on_http_error, ClientDisconnect: _on_gone}
    ours = dict.fromkeys((ApiError, RecycleError, Exception), _on_error)
    app = Starlette(routes=routes, exception_handlers={**ours, **handlers})
    behind = guarded(app, token, local_names_only, origins)
    return RequestCounter(behind, service.metrics, routes)

"""OpenAI's chat completions and completions: answers to messages, and continued texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx.serve import answers, orders, schema
from recycle_onnx.serve.answer_formats import AnswerFormat, ChatFormat, Label, TextFormat
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.orders import Fields, Order
from recycle_onnx.serve.service import EVENTS, Service
from recycle_onnx.serve.worker import Outcome, Step

SEEDS = 1 << 63
"""Seeds that follow a request's own are below it, as that is."""


async def chat(service: Service, request: Request) -> Response:
    """Answer messages."""

    def order_of(asked: schema.ChatRequest) -> list[Order]:
        settings = orders.chat_settings(asked, service.limits.schema_bytes)
        return _several([service.engine.order(orders.turns_of(asked), settings)], asked.n)

    asked, ordered = await service.read(request, schema.ChatRequest, order_of)
    label = Label(service.name, service.fingerprint, "chatcmpl")
    formats = [ChatFormat(label, service.decoder, bool(asked.logprobs), order.use) for order in ordered]
    return await service.answer(request, ordered, _form(asked, formats), bool(asked.stream))


async def completion(service: Service, request: Request) -> Response:
    """Continue a text, or several."""

    def order_of(asked: schema.CompletionRequest) -> list[Order]:
        settings = orders.text_settings(asked)
        texts = orders.texts_of(asked)
        names = ["prompt"] if len(texts) == 1 else [f"prompt[{index}]" for index in range(len(texts))]
        ordered = [service.engine.order(text, settings, Fields(name)) for text, name in zip(texts, names, strict=True)]
        return _several(ordered, asked.n)

    asked, ordered = await service.read(request, schema.CompletionRequest, order_of)
    label = Label(service.name, service.fingerprint, "cmpl")
    formats = [TextFormat(label, service.decoder, asked.logprobs is not None) for _ in ordered]
    return await service.answer(request, ordered, _form(asked, formats), bool(asked.stream))


def _several(ordered: list[Order], count: int | None) -> list[Order]:
    """Return `count` orders for each one, with seeds in a row: the answers to one prompt differ.

    Raises:
        ApiError: they are too many.
    """
    count = count or 1
    if count * len(ordered) > schema.MOST_ANSWERS:
        message = f"the request asks for {count * len(ordered)} answers; expected at most {schema.MOST_ANSWERS}"
        raise ApiError(400, "invalid_value", message, "n")
    return [_seeded(order, number) for order in ordered for number in range(count)]


def _seeded(order: Order, number: int) -> Order:
    if not number:
        return order
    return replace(order, config=order.config.updated(seed=(order.config.seed + number) % SEEDS))


def _form(asked: schema.GenerationRequest, formats: Sequence[AnswerFormat]) -> Choices:
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return Choices(formats, asked.n or 1, with_usage)


@dataclass
class Choices:
    """One or several answers as the choices of one; each is written by a format of its own, `n` to a prompt."""

    formats: Sequence[AnswerFormat]
    n: int
    with_usage: bool
    media: str = EVENTS

    def opening(self, first: Step) -> Iterator[str]:
        for index, form in enumerate(self.formats):
            for chunk in form.opening():
                yield _event(_numbered(chunk, index))

    def step(self, step: Step) -> Iterator[str]:
        yield _event(_numbered(self.formats[step.index].chunk(step), step.index))

    def end(self, outcome: Outcome) -> Iterator[str]:
        yield _event(_numbered(self.formats[outcome.index].ending(outcome.reason), outcome.index))

    def closing(self, outcomes: Sequence[Outcome]) -> Iterator[str]:
        if self.with_usage:
            yield _event(self.formats[0].usage(self._usage(outcomes)))
        yield "data: [DONE]\n\n"

    def failure(self, error: ApiError) -> Iterator[str]:
        yield f"data: {json.dumps(error.body())}\n\n"

    def whole(self, outcomes: Sequence[Outcome]) -> BaseModel:
        usage = self._usage(outcomes)
        made = [_numbered(self.formats[one.index].whole(one.tokens, one.reason, usage), one.index) for one in outcomes]
        whole = made[0]
        whole.choices = [choice for answer in made for choice in answer.choices]  # type: ignore[assignment]
        return whole

    def _usage(self, outcomes: Sequence[Outcome]) -> answers.Usage:
        """Count the tokens of all answers; a prompt with several answers counts once."""
        usages = [answers.Usage.of(outcome.result, outcome.seed) for outcome in outcomes]
        return answers.Usage.total(usages, [usages[index] for index in range(0, len(usages), self.n)])


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


def _numbered(answer: answers.BaseAnswer, index: int) -> answers.AnyAnswer:
    """Set the number of an answer's choices, which formats leave at 0."""
    assert isinstance(answer, answers.AnyAnswer)
    for choice in answer.choices:
        choice.index = index
    return answer

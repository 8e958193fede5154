"""Anthropic's messages: blocks in, blocks out, whole or as a stream of events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx.serve.anthropic_objects import (
    AnswerBlock,
    CallAnswerBlock,
    CountAnswer,
    CountRequest,
    MessagesAnswer,
    MessagesRequest,
    MessagesUsage,
    TextAnswerBlock,
    Thinking,
    ThoughtAnswerBlock,
)
from recycle_onnx.serve.blocks import Block, BlockChange, BlockReader
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.orders import Order, check_tools_length
from recycle_onnx.serve.service import EVENTS, Service, as_json
from recycle_onnx.serve.worker import Outcome, Step

PATH = "/v1/messages"


async def messages(service: Service, request: Request) -> Response:
    """Answer messages."""

    def order_of(asked: MessagesRequest) -> Order:
        check_tools_length(asked.functions, service.limits.schema_bytes)
        if isinstance(asked.thinking, Thinking):
            service.engine.check_thinks("thinking")
        return service.engine.order(asked.turns(), asked.settings())

    asked, order = await service.read(request, MessagesRequest, order_of)
    form = BlockForm(asked, service.name, BlockReader(order.use or order.thoughts, thoughts=True))
    return await service.answer(request, [order], form, bool(asked.stream))


async def count_tokens(service: Service, request: Request) -> Response:
    """Count the tokens that messages have as a prompt."""
    _, turns = await service.read(request, CountRequest, lambda asked: asked.turns())
    ids = await service.aside(lambda: service.engine.ids(turns))
    return as_json(CountAnswer(input_tokens=len(ids)))


@dataclass
class BlockForm:
    """One message of blocks, whole or as a stream of events."""

    asked: MessagesRequest
    model: str
    reader: BlockReader
    media: str = EVENTS
    message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")

    def opening(self, first: Step) -> Iterator[str]:
        usage = _usage(first.prompt_tokens, first.cached_tokens, 0)
        yield _event("message_start", message=self._answer([], usage).model_dump())
        yield _event("ping")

    def step(self, step: Step) -> Iterator[str]:
        return map(_told, self.reader.push(step.token.text))

    def end(self, outcome: Outcome) -> Iterator[str]:
        return map(_told, self.reader.end())

    def closing(self, outcomes: Sequence[Outcome]) -> Iterator[str]:
        whole = self._finished(outcomes[0], self.reader.blocks)
        delta = {"stop_reason": whole.stop_reason, "stop_sequence": whole.stop_sequence}
        yield _event("message_delta", delta=delta, usage=whole.usage.model_dump())
        yield _event("message_stop")

    def failure(self, error: ApiError) -> Iterator[str]:
        yield f"event: error\ndata: {json.dumps(error.body(PATH))}\n\n"

    def whole(self, outcomes: Sequence[Outcome]) -> MessagesAnswer:
        (outcome,) = outcomes
        return self._finished(outcome, self.reader.read("".join(token.text for token in outcome.tokens)))

    def _finished(self, outcome: Outcome, blocks: list[Block]) -> MessagesAnswer:
        stats = outcome.result.stats
        usage = _usage(stats.prompt_tokens, stats.reused_tokens, stats.new_tokens)
        answer = self._answer([_block(block) for block in blocks], usage)
        answer.stop_reason = "max_tokens" if outcome.reason == "length" else "end_turn"
        if self.reader.has_called(outcome.reason):
            answer.stop_reason = "tool_use"
        elif self.asked.has_stop(outcome.stop_string):
            answer.stop_reason, answer.stop_sequence = "stop_sequence", outcome.stop_string
        return answer

    def _answer(self, blocks: list[AnswerBlock], usage: MessagesUsage) -> MessagesAnswer:
        return MessagesAnswer(
            id=self.message_id, model=self.model, content=blocks, stop_reason=None, stop_sequence=None, usage=usage
        )


def _told(change: BlockChange) -> str:
    """Return the event of a change of a block."""
    block = change.block
    if change.kind == "opened":
        return _event("content_block_start", index=block.index, content_block=_block(block).model_dump())
    if change.kind == "closed":
        return _event("content_block_stop", index=block.index)
    delta = {"type": "text_delta", "text": change.text}
    if block.is_thought:
        delta = {"type": "thinking_delta", "thinking": change.text}
    if block.call is not None:
        delta = {"type": "input_json_delta", "partial_json": change.text}
    return _event("content_block_delta", index=block.index, delta=delta)


def _block(block: Block) -> AnswerBlock:
    if block.is_thought:
        return ThoughtAnswerBlock(thinking=block.text)
    if block.call is None:
        return TextAnswerBlock(text=block.text)
    return CallAnswerBlock(id=block.call.id, name=block.call.name, input=block.arguments or {})


def _usage(prompt: int, cached: int, new: int) -> MessagesUsage:
    return MessagesUsage(input_tokens=prompt - cached, cache_read_input_tokens=cached, output_tokens=new)


def _event(kind: str, **fields: object) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"

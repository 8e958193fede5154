"""OpenAI's responses: an input of items to an output of items. Nothing is stored, so each request brings the whole."""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx.runtime.generation import Token
from recycle_onnx.serve import orders
from recycle_onnx.serve.answers import TokenLogprob
from recycle_onnx.serve.blocks import Block, BlockChange, BlockReader
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.logprobs import entry_of
from recycle_onnx.serve.orders import Fields, Order
from recycle_onnx.serve.response_objects import (
    FlatChoice,
    IncompleteDetails,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputText,
    ResponsesAnswer,
    ResponsesRequest,
    ResponsesUsage,
)
from recycle_onnx.serve.schema import PlainText
from recycle_onnx.serve.service import EVENTS, Service
from recycle_onnx.serve.token_decoder import TokenDecoder
from recycle_onnx.serve.worker import Outcome, Step


async def responses(service: Service, request: Request) -> Response:
    """Answer an input with a response."""

    def order_of(asked: ResponsesRequest) -> Order:
        orders.check_tools_length(asked.tools or (), service.limits.schema_bytes)
        settings = asked.settings()
        if asked.text:
            settings["constraint"] = asked.text.constraint(service.limits.schema_bytes)
        settings["logprobs"] = asked.logprobs
        if asked.max_output_tokens:
            settings["max_new_tokens"] = asked.max_output_tokens
        return service.engine.order(asked.turns(), settings, Fields("input", "text.format"))

    asked, order = await service.read(request, ResponsesRequest, order_of)
    return await service.answer(
        request, [order], EventForm(asked, order, service.name, service.decoder), bool(asked.stream)
    )


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass
class EventForm:
    """One response, whole or as a stream of events."""

    asked: ResponsesRequest
    order: Order
    model: str
    decoder: TokenDecoder
    media: str = EVENTS
    response_id: str = field(default_factory=lambda: _new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    _events: int = 0
    _ids: dict[int, str] = field(default_factory=dict)
    _pending: list[TokenLogprob] = field(default_factory=list)
    """Of tokens whose text is still to come."""
    _logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """Of the tokens of each block of words."""

    def __post_init__(self) -> None:
        self._reader = BlockReader(self.order.use)

    def opening(self, first: Step) -> Iterator[str]:
        started = self._answer("in_progress", []).model_dump()
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)

    def step(self, step: Step) -> Iterator[str]:
        for change, logprobs in self._read(step.token):
            yield from self._told(change, logprobs)

    def end(self, outcome: Outcome) -> Iterator[str]:
        for change, logprobs in self._with_logprobs(self._reader.end(), at_end=True):
            yield from self._told(change, logprobs, _status(outcome))

    def closing(self, outcomes: Sequence[Outcome]) -> Iterator[str]:
        answer = self._finished(outcomes[0], self._reader.blocks)
        yield self._event(f"response.{answer.status}", response=answer.model_dump())

    def failure(self, error: ApiError) -> Iterator[str]:
        yield self._event("error", code=error.code, message=str(error), param=error.param)

    def whole(self, outcomes: Sequence[Outcome]) -> ResponsesAnswer:
        (outcome,) = outcomes
        for token in outcome.tokens:
            deque(self._read(token), maxlen=0)
        deque(self._with_logprobs(self._reader.end(), at_end=True), maxlen=0)
        return self._finished(outcome, self._reader.blocks)

    def _read(self, token: Token) -> Iterator[tuple[BlockChange, list[TokenLogprob]]]:
        """Yield what a token makes certain, with the log-probabilities of the tokens that a piece of words is of."""
        if self.asked.logprobs is not None:
            self._pending.append(entry_of(token, self.decoder))
        return self._with_logprobs(self._reader.push(token.text))

    def _with_logprobs(
        self, changes: Iterable[BlockChange], at_end: bool = False
    ) -> Iterator[tuple[BlockChange, list[TokenLogprob]]]:
        for change in changes:
            logprobs = []
            if change.block.call is not None:
                self._pending = []
            elif change.kind == "grown" or (at_end and change.kind == "closed"):
                logprobs, self._pending = self._pending, []
                self._logprobs.setdefault(change.block.index, []).extend(logprobs)
            yield change, logprobs

    def _told(
        self, change: BlockChange, logprobs: list[TokenLogprob], status: ItemStatus = "completed"
    ) -> Iterator[str]:
        """Yield the events of a change of a block; one that is closed has the status."""
        block = change.block
        where: dict[str, Any] = {"item_id": self._id(block), "output_index": block.index}
        part = {**where, "content_index": 0}
        if change.kind == "opened":
            item = self._item(block, "in_progress").model_dump()
            yield self._event(
                "response.output_item.added", output_index=block.index, item={**item, **_nothing_yet(block)}
            )
            if block.call is None:
                yield self._event("response.content_part.added", **part, part=OutputText(text="").model_dump())
        elif change.kind == "grown" and block.call is None:
            entries = [entry.model_dump() for entry in logprobs]
            yield self._event("response.output_text.delta", **part, delta=change.text, logprobs=entries)
        elif change.kind == "grown":
            yield self._event("response.function_call_arguments.delta", **where, delta=change.text)
        else:
            if block.call is None:
                whole = self._text(block).model_dump()
                yield self._event("response.output_text.done", **part, text=block.text, logprobs=whole["logprobs"])
                yield self._event("response.content_part.done", **part, part=whole)
            else:
                name, arguments = block.call.name, block.text
                yield self._event("response.function_call_arguments.done", **where, name=name, arguments=arguments)
            item = self._item(block, status).model_dump()
            yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _finished(self, outcome: Outcome, blocks: list[Block]) -> ResponsesAnswer:
        status = _status(outcome)
        last = len(blocks) - 1
        items = [self._item(block, status if block.index == last else "completed") for block in blocks]
        answer = self._answer(status, items)
        answer.incomplete_details = IncompleteDetails() if status == "incomplete" else None
        answer.usage = ResponsesUsage.of(outcome)
        return answer

    def _item(self, block: Block, status: ItemStatus) -> OutputItem:
        if block.call is None:
            return OutputMessage(id=self._id(block), status=status, content=[self._text(block)])
        call = block.call
        return OutputCall(id=self._id(block), status=status, call_id=call.id, name=call.name, arguments=block.text)

    def _text(self, block: Block) -> OutputText:
        return OutputText(text=block.text, logprobs=self._logprobs.get(block.index, []))

    def _id(self, block: Block) -> str:
        return self._ids.setdefault(block.index, _new_id("msg" if block.call is None else "fc"))

    def _answer(self, status: ItemStatus, output: list[OutputItem]) -> ResponsesAnswer:
        asked, config = self.asked, self.order.config
        form = asked.text.format if asked.text and asked.text.format else PlainText(type="text")
        choice = asked.tool_choice.model_dump() if isinstance(asked.tool_choice, FlatChoice) else asked.tool_choice
        return ResponsesAnswer(
            id=self.response_id,
            created_at=self.created,
            status=status,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            model=self.model,
            output=output,
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            temperature=config.temperature,
            text={"format": form.model_dump(by_alias=True, exclude_none=True)},
            tool_choice=choice or "auto",
            tools=[tool.model_dump() for tool in asked.tools or ()],
            top_logprobs=asked.top_logprobs or 0,
            top_p=config.top_p,
        )

    def _event(self, kind: str, **fields: object) -> str:
        event = {"type": kind, "sequence_number": self._events, **fields}
        self._events += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


def _nothing_yet(block: Block) -> dict[str, object]:
    """Return what a message has instead of a text that is still to come."""
    return {"content": []} if block.call is None else {}


def _status(outcome: Outcome) -> Literal["completed", "incomplete"]:
    return "completed" if outcome.reason == "stop" else "incomplete"

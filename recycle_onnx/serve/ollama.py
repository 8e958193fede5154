"""Ollama's API: chat and generate as lines of JSON, embeddings, and what is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.embedding import Text
from recycle_onnx.serve import orders
from recycle_onnx.serve.blocks import Block, BlockChange, BlockReader
from recycle_onnx.serve.embeddings import vectors_of
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.ollama_objects import (
    LINES,
    OllamaAnswer,
    OllamaCalled,
    OllamaChatRequest,
    OllamaDetails,
    OllamaEmbedding,
    OllamaEmbeddingRequest,
    OllamaEmbeddings,
    OllamaEmbedRequest,
    OllamaError,
    OllamaGenerateRequest,
    OllamaLoaded,
    OllamaMade,
    OllamaModel,
    OllamaRunning,
    OllamaShown,
    OllamaShowRequest,
    OllamaTags,
    OllamaTurn,
    OllamaVersion,
    when,
)
from recycle_onnx.serve.orders import Order
from recycle_onnx.serve.service import Service, as_json
from recycle_onnx.serve.worker import Outcome, Step

NANOSECONDS = 1e9


async def chat(service: Service, request: Request) -> Response:
    """Answer messages."""
    return await _answer(service, request, OllamaChatRequest)


async def generate(service: Service, request: Request) -> Response:
    """Answer a prompt."""
    return await _answer(service, request, OllamaGenerateRequest)


async def _answer(
    service: Service, request: Request, kind: type[OllamaChatRequest] | type[OllamaGenerateRequest]
) -> Response:
    def order_of(asked: OllamaChatRequest | OllamaGenerateRequest) -> Order | None:
        if isinstance(asked, OllamaChatRequest):
            orders.check_tools_length((tool.function for tool in asked.tools or ()), service.limits.schema_bytes)
        if asked.think:
            service.engine.check_thinks("think")
        prompt, settings = asked.prompt_of(), asked.settings(service.limits.schema_bytes)
        return None if prompt is None else service.engine.order(prompt, settings)

    asked, order = await service.read(request, kind, order_of)
    reader = BlockReader(None if order is None else order.use or order.thoughts, thoughts=True)
    form = LinesForm(service.name, isinstance(asked, OllamaChatRequest), reader)
    if order is None:
        return as_json(form.loaded())
    return await service.answer(request, [order], form, asked.stream is not False)


@dataclass
class LinesForm:
    """An answer as Ollama has it: a message or a text, whole or as lines of JSON."""

    model: str
    is_chat: bool
    reader: BlockReader
    media: str = LINES
    started: float = field(default_factory=time.perf_counter)

    def opening(self, first: Step) -> Iterator[str]:
        yield from ()

    def step(self, step: Step) -> Iterator[str]:
        return self._told(self.reader.push(step.token.text))

    def end(self, outcome: Outcome) -> Iterator[str]:
        return self._told(self.reader.end())

    def closing(self, outcomes: Sequence[Outcome]) -> Iterator[str]:
        yield as_line(self._ended(self._made(""), outcomes[0]))

    def failure(self, error: ApiError) -> Iterator[str]:
        yield as_line(OllamaError(error=str(error)))

    def whole(self, outcomes: Sequence[Outcome]) -> OllamaAnswer:
        (outcome,) = outcomes
        blocks = self.reader.read("".join(token.text for token in outcome.tokens))
        text = "".join(block.text for block in blocks if block.is_words)
        thought = "".join(block.text for block in blocks if block.is_thought)
        made = self._made(text, thought, [made for block in blocks for made in _made_call(block)])
        return self._ended(made, outcome)

    def _told(self, changes: Iterator[BlockChange]) -> Iterator[str]:
        """Yield a line for each piece of words or of a thought, and for each call that is whole."""
        for change in changes:
            if change.kind == "closed" and (calls := _made_call(change.block)):
                yield as_line(self._made(calls=calls))
            elif change.kind == "grown" and change.block.is_thought:
                yield as_line(self._made(thought=change.text))
            elif change.kind == "grown" and change.block.is_words:
                yield as_line(self._made(change.text))

    def loaded(self) -> OllamaAnswer:
        """Return the answer to a request without a prompt."""
        return self._made("").model_copy(update={"done": True, "done_reason": "load"})

    def _ended(self, made: OllamaAnswer, outcome: Outcome) -> OllamaAnswer:
        """Return an answer, or the last line of one, with why it ends and what it took."""
        stats = outcome.result.stats
        return made.model_copy(
            update={
                "done": True,
                "done_reason": outcome.reason,
                "total_duration": _nanoseconds(time.perf_counter() - self.started),
                # The model was loaded before the first request came.
                "load_duration": 0,
                "prompt_eval_count": stats.prompt_tokens,
                "prompt_eval_duration": _nanoseconds(stats.prefill_s),
                "eval_count": stats.new_tokens,
                "eval_duration": _nanoseconds(stats.decode_s),
            }
        )

    def _made(self, text: str = "", thought: str = "", calls: list[OllamaMade] | None = None) -> OllamaAnswer:
        if self.is_chat:
            turn = OllamaTurn(content=text, thinking=thought or None, tool_calls=calls or None)
            return OllamaAnswer(model=self.model, message=turn)
        return OllamaAnswer(model=self.model, response=text, thinking=thought or None)


def _made_call(block: Block) -> list[OllamaMade]:
    """Return the call that a block is, if it is one, and whole."""
    if block.call is None or block.arguments is None:
        return []
    return [OllamaMade(function=OllamaCalled(name=block.call.name, arguments=block.arguments))]


async def embed(service: Service, request: Request) -> Response:
    """Answer with a vector for each text."""
    started = time.perf_counter()

    def work_of(asked: OllamaEmbedRequest) -> Callable[[], tuple[int, list[Floats]]]:
        texts: list[Text] = [asked.input] if isinstance(asked.input, str) else [*asked.input]
        return vectors_of(service.engine, texts, None, asked.dimensions, truncate=asked.truncate is not False)

    _, work = await service.read(request, OllamaEmbedRequest, work_of)
    tokens, vectors = await service.call(request, work)
    answer = OllamaEmbeddings(
        model=service.name,
        embeddings=[vector.tolist() for vector in vectors],
        total_duration=_nanoseconds(time.perf_counter() - started),
        prompt_eval_count=tokens,
    )
    return as_json(answer)


async def embedding(service: Service, request: Request) -> Response:
    """Answer with the vector of one text."""
    _, work = await service.read(
        request,
        OllamaEmbeddingRequest,
        lambda asked: vectors_of(service.engine, [asked.prompt], None, None, truncate=True),
    )
    _, (vector,) = await service.call(request, work)
    return as_json(OllamaEmbedding(embedding=vector.tolist()))


async def tags(service: Service, request: Request) -> Response:
    """List the one model."""
    listed = OllamaModel(**_model(service), modified_at=_modified(service))
    return as_json(OllamaTags(models=[listed]))


async def running(service: Service, request: Request) -> Response:
    """List the one model, which is loaded."""
    context = service.engine.model.context_length
    return as_json(OllamaRunning(models=[OllamaLoaded(**_model(service), context_length=context)]))


async def show(service: Service, request: Request) -> Response:
    """Describe the model."""
    await service.read(request, OllamaShowRequest, lambda asked: None)
    manifest = service.engine.model.bundle.manifest
    family = manifest.base["model_type"]
    known = {
        "general.architecture": family,
        "general.parameter_count": manifest.base.get("parameters"),
        f"{family}.context_length": manifest.context_length,
        f"{family}.embedding_length": manifest.base["hidden_size"],
        f"{family}.block_count": manifest.base["num_layers"],
    }
    abilities = ["completion", "embedding", "tools", *(["thinking"] if service.engine.tool_chat.thinks else [])]
    described = OllamaShown(
        details=_details(service), model_info=known, capabilities=abilities, modified_at=_modified(service)
    )
    return as_json(described)


async def version(service: Service, request: Request) -> Response:
    """Tell the version of this server."""
    return as_json(OllamaVersion(version=__version__))


def _model(service: Service) -> dict[str, Any]:
    """Return the fields by which the model is told in lists."""
    bundle = service.engine.model.bundle
    return {
        "name": service.name,
        "model": service.name,
        "size": sum(file.bytes for file in bundle.manifest.files.values()),
        "digest": bundle.digest,
        "details": _details(service),
    }


def _details(service: Service) -> OllamaDetails:
    manifest = service.engine.model.bundle.manifest
    family, count = manifest.base["model_type"], manifest.base.get("parameters") or 0
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"
    return OllamaDetails(
        family=family, families=[family], parameter_size=size, quantization_level=manifest.precision.upper()
    )


def _modified(service: Service) -> str:
    return when((service.engine.model.bundle.folder / MANIFEST).stat().st_mtime)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def as_line(answer: BaseModel) -> str:
    """Return a line of JSON in ASCII: clients end lines at U+2028, too, and at other characters of a text."""
    return json.dumps(answer.model_dump()) + "\n"

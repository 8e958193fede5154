"""OpenAI's embeddings: a vector for each text, as numbers or as the bytes of float32 in base64."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx.contract import Pooling
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.embedding import Embedder, Text
from recycle_onnx.serve.engine import Engine
from recycle_onnx.serve.errors import naming
from recycle_onnx.serve.schema import Prompt, ServedRequest, Tokens
from recycle_onnx.serve.service import Service, as_json

MOST_INPUTS = 2048
"""Texts of a request, as OpenAI's API has it."""
Inputs = Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)


class EmbeddingRequest(ServedRequest):
    """Texts, or the token ids of texts, to make vectors of."""

    input: Prompt | Tokens | Annotated[list[Prompt], Inputs] | Annotated[list[Tokens], Inputs]
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The first so many values; all if left out."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float if left out.")
    pooling: Pooling | None = Field(None, description="The base's own if left out, otherwise mean.")
    user: str | None = Field(None, description="Ignored.")

    def texts(self) -> list[Text]:
        """Return the texts, or their token ids."""
        several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return self.input if several else [self.input]  # type: ignore[list-item, return-value]


class Embedding(BaseModel):
    """The vector of one text: numbers, or float32 in little-endian bytes as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """The number of tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """The vectors of all texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


async def embeddings(service: Service, request: Request) -> Response:
    """Answer with a vector for each text."""
    asked, work = await service.read(
        request,
        EmbeddingRequest,
        lambda asked: vectors_of(service.engine, asked.texts(), asked.pooling, asked.dimensions),
    )
    tokens, vectors = await service.call(request, work)
    written = _base64 if asked.encoding_format == "base64" else _numbers
    answer = EmbeddingAnswer(
        data=[Embedding(index=index, embedding=written(vector)) for index, vector in enumerate(vectors)],
        model=service.name,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return as_json(answer)


def vectors_of(
    engine: Engine, texts: list[Text], pooling: str | None, dimensions: int | None, truncate: bool = False
) -> Callable[[], tuple[int, list[Floats]]]:
    """Return the work of embedding texts, for a slot: it gives the number of their tokens, and the vectors.

    All texts are looked at before the first one is read; of one that is too long, `truncate` leaves out the end.
    """

    def work() -> tuple[int, list[Floats]]:
        with naming("dimensions"):
            embedder = Embedder(engine.model, pooling, dimensions)
        ids = []
        for index, text in enumerate(texts):
            with naming("input" if len(texts) == 1 else f"input[{index}]"):
                ids.append(embedder.ids(text, truncate))
        return sum(map(len, ids)), list(embedder.vectors(ids))

    return work


def _numbers(vector: Floats) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()

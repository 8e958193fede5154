"""The OpenAPI document of what is served, made from the same classes that read requests and write answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from recycle_onnx.serve import answers, embeddings, llama_server, schema
from recycle_onnx.serve import anthropic_objects as anthropic
from recycle_onnx.serve import ollama_objects as ollama
from recycle_onnx.serve import response_objects as responses

JSON, EVENTS, TEXT, HTML = "application/json", "text/event-stream", "text/plain", "text/html"
STATUS = {
    400: "The request makes no sense, or asks for what is not served.",
    401: "The token is missing or wrong.",
    403: "The Host header names another machine, or the Origin header another site.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not declared as application/json.",
    429: "The queue is full.",
    500: "The generation failed.",
    503: "No slot became free in time, or the server ends.",
    504: "The answer took too long.",
}
Kind = type[BaseModel]
MESSAGES = {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
PROMPT = {"prompt": "Once upon a time"}
INPUT = {"input": "Why is the sky blue?"}


@dataclass(frozen=True)
class Operation:
    """What a path does: the class of its requests (None for GET), of whole answers, and of a stream's pieces.

    An answer that is no JSON object of ours has no class; `media` is its type then. `example` is a request.
    """

    summary: str
    asked: Kind | None = None
    whole: Kind | None = None
    piece: Kind | None = None
    media: str = JSON
    parameters: tuple[str, ...] = ()
    is_open: bool = False
    stream_media: str = EVENTS
    error: Kind = answers.ErrorAnswer
    example: Mapping[str, Any] | None = None

    def kinds(self) -> Iterator[tuple[Kind, str]]:
        """Yield the classes with pydantic's word for what is described: `validation` for what is read."""
        if self.asked:
            yield self.asked, "validation"
        for kind in (self.whole, self.piece, self.error):
            if kind:
                yield kind, "serialization"

    def described(self) -> dict[str, Any]:
        """Return the operation as OpenAPI has it."""
        named = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in self.parameters
        ]
        body = {**_ref(self.asked), "example": self.example} if self.asked else {}
        request = {"requestBody": {"required": True, "content": {JSON: body}}} if self.asked else {}
        answer = {"description": self.summary, "content": self._content()}
        return {
            "summary": self.summary,
            "parameters": named,
            **request,
            "responses": {"200": answer, **self._errors()},
        }

    def _content(self) -> dict[str, Any]:
        if self.whole is None:
            return {self.media: {"schema": {} if self.media == JSON else {"type": "string"}}}
        whole = {self.media: _ref(self.whole)}
        return whole if self.piece is None else {**whole, self.stream_media: self._stream(self.piece)}

    def _stream(self, piece: Kind) -> dict[str, Any]:
        if self.stream_media != EVENTS:
            return {"itemSchema": {"anyOf": [_ref(piece)["schema"], _ref(self.error)["schema"]]}}
        data = {"type": "string", "description": f"{piece.__name__} or {self.error.__name__} as JSON, or [DONE]."}
        return {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}

    def _errors(self) -> dict[str, Any]:
        content = {JSON: _ref(self.error)}
        return {str(status): {"description": STATUS[status], "content": content} for status in self._statuses()}

    def _statuses(self) -> list[int]:
        if self.asked:
            return list(STATUS)
        return [403] if self.is_open else [401, 403, 404] if self.parameters else [401, 403]


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/models"): Operation("What is served.", whole=answers.ModelList),
    ("GET", "/v1/models/{model}"): Operation(
        "The model that is served.", whole=answers.ModelCard, parameters=("model",)
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer messages.", schema.ChatRequest, answers.ChatAnswer, answers.ChatChunk,
        example={**MESSAGES, "max_tokens": 20},
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue a text.", schema.CompletionRequest, answers.TextAnswer, answers.TextAnswer,
        example={**PROMPT, "max_tokens": 20},
    ),
    ("POST", "/v1/responses"): Operation(
        "Answer an input.",
        responses.ResponsesRequest, responses.ResponsesAnswer, responses.ResponseEvent,
        example={**INPUT, "max_output_tokens": 20},
    ),
    ("POST", "/v1/embeddings"): Operation(
        "Make a vector of each text.", embeddings.EmbeddingRequest, embeddings.EmbeddingAnswer,
        example={"input": ["The cat sat.", "A kitten sat."]},
    ),
    ("POST", "/v1/messages"): Operation(
        "Answer messages, as Anthropic has it.",
        anthropic.MessagesRequest, anthropic.MessagesAnswer, anthropic.MessagesEvent, error=anthropic.MessagesError,
        example={**MESSAGES, "max_tokens": 20},
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Count the tokens of messages.", anthropic.CountRequest, anthropic.CountAnswer, error=anthropic.MessagesError,
        example=MESSAGES,
    ),
    ("POST", "/api/chat"): Operation(
        "Answer messages, as Ollama has it.", ollama.OllamaChatRequest, ollama.OllamaAnswer, ollama.OllamaAnswer,
        stream_media=ollama.LINES, error=ollama.OllamaError,
        example={**MESSAGES, "stream": False, "options": {"num_predict": 20}},
    ),
    ("POST", "/api/generate"): Operation(
        "Answer a prompt, as Ollama has it.", ollama.OllamaGenerateRequest, ollama.OllamaAnswer, ollama.OllamaAnswer,
        stream_media=ollama.LINES, error=ollama.OllamaError,
        example={**PROMPT, "stream": False, "options": {"num_predict": 20}},
    ),
    ("POST", "/api/embed"): Operation(
        "Make a vector of each text.", ollama.OllamaEmbedRequest, ollama.OllamaEmbeddings, error=ollama.OllamaError,
        example=INPUT,
    ),
    ("POST", "/api/embeddings"): Operation(
        "Make a vector of a text, for older clients.",
        ollama.OllamaEmbeddingRequest, ollama.OllamaEmbedding, error=ollama.OllamaError,
        example=PROMPT,
    ),
    ("POST", "/api/show"): Operation(
        "Describe the model.", ollama.OllamaShowRequest, ollama.OllamaShown, error=ollama.OllamaError,
        example={"model": "any"},
    ),
    ("GET", "/api/tags"): Operation("What is served.", whole=ollama.OllamaTags, error=ollama.OllamaError),
    ("GET", "/api/ps"): Operation("What is loaded.", whole=ollama.OllamaRunning, error=ollama.OllamaError),
    ("GET", "/api/version"): Operation(
        "The version of the server.", whole=ollama.OllamaVersion, error=ollama.OllamaError
    ),
    ("POST", "/tokenize"): Operation(
        "Return the tokens of a text.", llama_server.TokenizeRequest, llama_server.TokenizeAnswer,
        example={"content": "Why is the sky blue?"},
    ),
    ("POST", "/detokenize"): Operation(
        "Return the text of tokens.", llama_server.DetokenizeRequest, llama_server.DetokenizeAnswer,
        example={"tokens": [1, 2, 3]},
    ),
    ("POST", "/apply-template"): Operation(
        "Return the prompt of messages.", schema.TurnsRequest, llama_server.TemplateAnswer,
        example=MESSAGES,
    ),
    ("GET", "/props"): Operation("What is loaded, and how it generates.", whole=llama_server.Props),
    ("GET", "/health"): Operation("Whether the server takes requests.", whole=answers.Health, is_open=True),
    ("GET", "/metrics"): Operation("Counters for Prometheus.", media=TEXT),
    ("GET", "/openapi.json"): Operation("This document.", is_open=True),
    ("GET", "/"): Operation("A page to chat.", media=HTML, is_open=True),
}  # fmt: skip


def document(version: str, with_token: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.2 document; `with_token` tells whether clients need a token."""
    paths: dict[str, Any] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = operation.described()
    secured: dict[str, Any] = {"security": [{"token": []}]} if with_token else {}
    return {
        "openapi": "3.2.0",
        "info": {"title": "recycle-onnx serve", "version": version},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        **secured,
    }


def _schemas() -> dict[str, Any]:
    kinds: dict[tuple[Kind, str], None] = {}
    for operation in OPERATIONS.values():
        kinds |= dict.fromkeys(operation.kinds())
    _, made = models_json_schema(list(kinds), ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    definitions: dict[str, Any] = made["$defs"]
    return definitions


def _ref(kind: Kind) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}

"""The OpenAPI document of what is served, made from the same classes that read requests and write answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from recycle_onnx.serve import answers, schema

JSON = "application/json"
EVENTS = "text/event-stream"
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
COMPLETION = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)


def document(version: str, with_token: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.2 document; `with_token` tells whether clients need a token."""
    paths = {
        "/v1/models": {"get": _read("What is served.", answers.ModelList)},
        "/v1/models/{model}": {"get": _read("The model that is served.", answers.ModelCard, parameters=["model"])},
        "/v1/chat/completions": {
            "post": _complete("Answer messages.", schema.ChatRequest, answers.ChatAnswer, answers.ChatChunk)
        },
        "/v1/completions": {
            "post": _complete("Continue a text.", schema.CompletionRequest, answers.TextAnswer, answers.TextAnswer)
        },
        "/health": {"get": _read("Whether the server takes requests.", answers.Health, with_401=False)},
        "/metrics": {"get": _text("Counters for Prometheus.", "text/plain", (401, 403))},
        "/openapi.json": {"get": _text("This document.", JSON, (403,))},
        "/": {"get": _text("A page to chat.", "text/html", (403,))},
    }
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
    asked: list[type[BaseModel]] = [schema.ChatRequest, schema.CompletionRequest]
    written: list[type[BaseModel]] = [
        answers.ModelList, answers.ModelCard, answers.ChatAnswer, answers.ChatChunk, answers.TextAnswer,
        answers.Health, answers.ErrorAnswer,
    ]  # fmt: skip
    modes = [(kind, "validation") for kind in asked] + [(kind, "serialization") for kind in written]
    _, made = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    definitions: dict[str, Any] = made["$defs"]
    return definitions


def _ref(kind: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {JSON: _ref(answers.ErrorAnswer)}
    return {str(status): {"description": STATUS[status], "content": content} for status in statuses}


def _read(
    text: str, kind: type[BaseModel], parameters: list[str] | None = None, with_401: bool = True
) -> dict[str, Any]:
    named = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters or []]
    statuses = ((401,) if with_401 else ()) + ((403, 404) if named else (403,))
    return {
        "summary": text,
        "parameters": named,
        "responses": {"200": {"description": text, "content": {JSON: _ref(kind)}}, **_errors(statuses)},
    }


def _text(text: str, media: str, statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {media: {"schema": {} if media == JSON else {"type": "string"}}}
    return {"summary": text, "responses": {"200": {"description": text, "content": content}, **_errors(statuses)}}


def _complete(text: str, asked: type[BaseModel], whole: type[BaseModel], chunk: type[BaseModel]) -> dict[str, Any]:
    data = {"type": "string", "description": f"{chunk.__name__} or ErrorAnswer as JSON; at the end [DONE]."}
    stream = {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}
    answer = {"description": "The answer, or a stream of it.", "content": {JSON: _ref(whole), EVENTS: stream}}
    return {
        "summary": text,
        "requestBody": {"required": True, "content": {JSON: _ref(asked)}},
        "responses": {"200": answer, **_errors(COMPLETION)},
    }

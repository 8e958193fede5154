"""The table of routes, and the application around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from recycle_onnx import __version__
from recycle_onnx.errors import RecycleError
from recycle_onnx.serve import (
    anthropic,
    completions,
    embeddings,
    llama_server,
    models,
    ollama,
    openapi,
    page,
    responses,
)
from recycle_onnx.serve.access import guarded
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.metrics import RequestCounter
from recycle_onnx.serve.service import Service, reported

Handler = Callable[[Service, Request], Awaitable[Response]]
GONE = 499
"""Status of an answer that nobody gets, as nginx calls it; it is only counted."""
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", page.show),
    ("GET", "/health", models.health),
    ("GET", "/metrics", models.metrics),
    ("GET", "/v1/models", models.listed),
    ("GET", "/v1/models/{model:path}", models.one),
    ("POST", "/v1/chat/completions", completions.chat),
    ("POST", "/v1/completions", completions.completion),
    ("POST", "/v1/responses", responses.responses),
    ("POST", "/v1/embeddings", embeddings.embeddings),
    ("POST", "/v1/messages", anthropic.messages),
    ("POST", "/v1/messages/count_tokens", anthropic.count_tokens),
    ("POST", "/api/chat", ollama.chat),
    ("POST", "/api/generate", ollama.generate),
    ("POST", "/api/embed", ollama.embed),
    ("POST", "/api/embeddings", ollama.embedding),
    ("POST", "/api/show", ollama.show),
    ("GET", "/api/tags", ollama.tags),
    ("GET", "/api/ps", ollama.running),
    ("GET", "/api/version", ollama.version),
    ("POST", "/tokenize", llama_server.tokenize),
    ("POST", "/detokenize", llama_server.detokenize),
    ("POST", "/apply-template", llama_server.apply_template),
    ("GET", "/props", llama_server.props),
)


def make_app(
    service: Service, token: str | None = None, local_names_only: bool = True, origins: frozenset[str] = frozenset()
) -> ASGIApp:
    """Return the server's ASGI application."""
    document = openapi.document(__version__, token is not None)
    routes = [Route(path, partial(handler, service), methods=[method]) for method, path, handler in ROUTES]
    routes.append(Route("/openapi.json", partial(_described, document)))
    handlers = {HTTPException: _on_http_error, ClientDisconnect: _on_gone}
    ours = dict.fromkeys((ApiError, RecycleError, Exception), _on_error)
    app = Starlette(routes=routes, exception_handlers={**ours, **handlers})
    # The counter is outermost, so that what the guard refuses is counted too.
    behind = guarded(app, token, local_names_only, origins)
    return RequestCounter(behind, service.metrics, routes)


async def _described(document: dict[str, object], request: Request) -> Response:
    return JSONResponse(document)


async def _on_error(request: Request, error: Exception) -> Response:
    return reported(error).response(request.url.path)


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    path = request.url.path
    response = ApiError(error.status_code, code, f"{request.method} {path[:100]}: {error.detail}").response(path)
    response.headers.update(error.headers or {})
    return response

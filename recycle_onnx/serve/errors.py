"""Errors: a status and JSON with a message, in the shape of the API whose path was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.responses import JSONResponse

from recycle_onnx.errors import InputError, TextError

TYPES = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}
"""OpenAI's names of errors by status; others follow from whose fault a status means."""

ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""Anthropic's names of errors by status."""


class ApiError(Exception):
    """An error that ends a request with typed JSON; `retry_after` are seconds after which another try may succeed."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @classmethod
    def of(cls, error: BaseException) -> ApiError:
        """Turn an error in generation into what the client is told: all of it only where the request is at fault."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, InputError | TextError):
            return cls(400, "invalid_value", " ".join(str(error).split()))
        return cls(500, "internal_error", f"the generation failed ({type(error).__name__}); the server's log says more")

    def body(self, path: str = "") -> dict[str, object]:
        """Return the error as JSON's values, in the shape of the API that `path` is of: OpenAI's where no other is."""
        if path.startswith("/api/"):
            return {"error": str(self)}
        if path.startswith("/v1/messages"):
            kind = ANTHROPIC_TYPES.get(self.status, self._kind("invalid_request_error", "api_error"))
            return {"type": "error", "error": {"type": kind, "message": str(self)}}
        kind = TYPES.get(self.status, self._kind("invalid_request_error", "server_error"))
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def _kind(self, clients: str, ours: str) -> str:
        return clients if self.status < 500 else ours

    def response(self, path: str = "") -> JSONResponse:
        """Return the HTTP response that reports the error to who asked for `path`."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            # HTTP wants it beside a 401.
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(path), self.status, headers)


@contextmanager
def naming(param: str, beginning: str = "") -> Iterator[None]:
    """Say of a mistake within the block which field of the request it lies in, with the `beginning` of its message.

    Raises:
        ApiError: 400, for an InputError.
    """
    try:
        yield
    except InputError as error:
        raise ApiError(400, "invalid_value", f"{beginning}{' '.join(str(error).split())}", param) from error

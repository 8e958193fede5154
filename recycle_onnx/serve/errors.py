"""Errors as OpenAI's API gives them: a status, and JSON with message, type, parameter and code."""

from __future__ import annotations

from starlette.responses import JSONResponse

from recycle_onnx.errors import InputError, TextError

TYPES = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}
"""OpenAI's names of errors by status; others follow from whose fault a status means."""


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

    def body(self) -> dict[str, object]:
        """Return the error as JSON's values."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the HTTP response that reports the error."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)

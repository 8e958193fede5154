"""Who may ask: a token where one is set, and on a loopback address only names of this machine.

A page on the web can make a browser send requests to this machine. It cannot read the answers without CORS, which is
off, unless its own host name is made to mean 127.0.0.1 (DNS rebinding): so the Host header is checked. Bodies must be
declared as JSON, which a browser sends to a foreign server only after asking it first.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recycle_onnx.serve.errors import ApiError

OPEN = frozenset({"/", "/health", "/openapi.json"})
"""Paths that tell nothing about anybody, and need no token."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    name = header.strip()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


@dataclass
class Guard:
    """Lets only those requests through that may pass, and marks every answer as private."""

    app: ASGIApp
    token: str | None
    local_names_only: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error = self._refusal(scope["path"], Headers(scope=scope))
        await (error.response() if error else self.app)(scope, receive, send_private)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host = host_name(headers.get("host", ""))
        if self.local_names_only and not is_loopback(host):
            return ApiError(
                403, "host_not_allowed", f"the Host header says {host[:100]!r}; this server is for localhost alone"
            )
        if self.token and path not in OPEN and not self._knows(headers.get("authorization", "")):
            return ApiError(401, "invalid_api_key", "expected the server's token: Authorization: Bearer TOKEN")
        return None

    def _knows(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), str(self.token).encode())

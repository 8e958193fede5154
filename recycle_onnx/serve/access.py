"""Who may ask: a token where one is set, on a loopback address only names of this machine, and no page of another site.

A page on the web can make a browser send requests to this machine. The browser says whose page it is: pages of other
origins are refused unless they are allowed, and then get CORS headers to read the answers. A page whose own host name
is made to mean 127.0.0.1 (DNS rebinding) has no other origin: so the Host header is checked. Bodies must be declared as
JSON, which a browser sends to a foreign server only after asking it first.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recycle_onnx.errors import InputError
from recycle_onnx.serve.errors import ApiError

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Ports that browsers leave out of an origin."""
OPEN = frozenset({"/", "/health", "/openapi.json"})
"""Paths that tell nothing about anybody, and need no token."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Sent with every answer: no other site may embed it, and nobody keeps a copy of what was said."""


def is_loopback(host: str) -> bool:
    """Tell whether an address or name means this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    name = header.strip()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def checked_origins(origins: Iterable[str]) -> frozenset[str]:
    """Return origins as browsers write them: scheme and host in small letters, no default port, no path.

    Raises:
        InputError: something else than an origin; `*` and `null`, which any page can have, are none.
    """
    return frozenset(_origin(origin) for origin in origins)


def _origin(text: str) -> str:
    try:
        url = urlsplit(text)
        name = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        port = "" if url.port in (None, DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    except ValueError as error:
        raise InputError(f"--allow-origin is {text!r} ({error}); expected an origin, as https://app.example") from error
    if not name or url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
        raise InputError(f"--allow-origin is {text!r}; expected scheme and host alone, as https://app.example")
    return f"{url.scheme}://{name}{port}"


def guarded(app: ASGIApp, token: str | None, local_names_only: bool, origins: frozenset[str]) -> ASGIApp:
    """Put everything that keeps others out in front of the application; pages of `origins` may use it as their own."""
    inner: ASGIApp = TokenCheck(app, token) if token else app
    if origins:
        # Around the check of the token: a browser asks whether it may, without the token, before it sends it.
        inner = CORSMiddleware(
            inner, origins, ("GET", "POST"), ("*",), allow_private_network=True, expose_headers=("Retry-After",)
        )
    return Guard(inner, local_names_only, origins)


@dataclass
class Guard:
    """A gate for requests to this machine's names from allowed pages; it marks every answer as private."""

    app: ASGIApp
    local_names_only: bool
    origins: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    # What an answer says for itself stays.
                    headers.setdefault(name, value)
            await send(message)

        error = self._refusal(Headers(scope=scope))
        await (error.response(scope["path"]) if error else self.app)(scope, receive, send_private)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local_names_only and not is_loopback(host_name(host)):
            return ApiError(
                403,
                "host_not_allowed",
                f"the Host header says {host_name(host)[:100]!r}; this server is for localhost alone",
            )
        if origin is not None and origin not in self.origins and not _is_own_page(origin, host, headers):
            return ApiError(
                403,
                "origin_not_allowed",
                f"a page of {origin[:100]!r} asks; this server answers its own page alone: allow others with "
                "--allow-origin",
            )
        return None


def _is_own_page(origin: str, host: str, headers: Headers) -> bool:
    """Tell whether a request comes from this server's own page.

    The browser says so, or the name that it asked for does; behind a proxy the Host header is another one.
    """
    _, separator, name = origin.partition("://")  # `null`, the origin of files and sandboxes, has none
    return headers.get("sec-fetch-site") == "same-origin" or (bool(separator) and name.lower() == host.lower())


@dataclass
class TokenCheck:
    """A gate for clients that know the token; paths that tell nothing about anybody need none."""

    app: ASGIApp
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN or self._is_in(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        error = ApiError(401, "invalid_api_key", "expected the server's token: Authorization: Bearer TOKEN")
        await error.response(scope["path"])(scope, receive, send)

    def _is_in(self, headers: Headers) -> bool:
        """Tell whether the token is where OpenAI's clients send it, or where Anthropic's do."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # In a time that does not tell how much of a guess was right.
        return hmac.compare_digest(sent.strip().encode(), self.token.encode())

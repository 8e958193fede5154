"""Listening: which address is allowed, and how the server ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.access import checked_origins, is_loopback
from recycle_onnx.serve.app import make_app
from recycle_onnx.serve.connection import limited
from recycle_onnx.serve.engine import Engine
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.service import Service

BACKLOG = 256
"""Connections that the system holds until they are accepted: a crowd that comes at once is not turned away."""


@dataclass(frozen=True)
class Address:
    """An address to listen on; port 0 is any free one. Clients need `token`, where it is set.

    Pages of `origins` (`https://app.example`) may use the server; in browsers others may not.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "origins", checked_origins(self.origins))
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}; expected 0 (any that is free) to 65535")
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable() and token == token.strip()):
            raise InputError(
                "the token is empty, begins or ends with a blank, or has characters that no HTTP header may hold; "
                "expected plain ASCII"
            )
        if not self.is_local and self.token is None:
            raise InputError(
                f"host {self.host} can be reached from other machines; set a token with --token or "
                "RECYCLE_ONNX_TOKEN, or listen on 127.0.0.1"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def bind(self) -> socket.socket:
        """Open a socket that listens on this address.

        Raises:
            InputError: no such host.
            RecycleError: the port is in use, or not ours to use.
        """
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )[0]
        except OSError as error:
            raise InputError(f"host {self.host!r} is not known ({error}); expected a name or address") from error
        # asyncio sets TCP_NODELAY only on sockets that say they are TCP; without it answers wait 40 ms for an ACK
        listener = socket.socket(family, kind, protocol)
        try:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would share a port in use
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise RecycleError(
                f"cannot listen on {self.host} port {self.port} ({error.strerror}); choose another with --port"
            ) from error
        return listener


@dataclass
class Server:
    """A model on an address: bound when it is made, serving while it runs.

    A `strict` one refuses requests that name another model than `name`.
    """

    model: Model
    name: str
    address: Address
    limits: Limits = field(default_factory=Limits)
    strict: bool = False

    def __post_init__(self) -> None:
        self._listener = self.address.bind()
        self._engine = Engine(self.model, self.limits)

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def run(self, ready: Callable[[Uvicorn], None] = lambda server: None) -> None:
        """Serve until a signal comes, or until `should_exit` of what `ready` is given is set.

        Raises:
            KeyboardInterrupt: Ctrl-C, when all has ended.
        """
        token = self.address.token
        service = Service(self._engine, self.name, self.limits, self.strict)
        app = make_app(service, token, self.address.is_local, self.address.origins)
        config = uvicorn.Config(
            app, http=limited(self.limits), log_level="warning", access_log=False, lifespan="off", server_header=False,
            # Left to itself, uvicorn would load a package for websockets where there is one.
            ws="none",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = Uvicorn(config, service)
        ready(server)
        await server.serve(sockets=[self._listener])


class Uvicorn(uvicorn.Server):
    """A uvicorn server that ends generations before it waits for their connections to close, and saves at the end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.workers.close()
        await super().shutdown(sockets)
        await asyncio.to_thread(self.service.engine.close)

"""Connections that ask nothing, or take nothing of their answer, are closed: each holds a descriptor of the process.

And no connection keeps the event loop for long: what it sends is taken in small pieces, others have their turn between.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from recycle_onnx.serve.limits import Limits

PIECE = 4096
"""Bytes. asyncio reads 256 KiB, which as chunks of a byte each take h11 three seconds; these take 50 ms at most."""


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """An HTTP/1.1 connection on which headers must come in time, and answers be read.

    (uvicorn alone waits for ever for both; the body's time is `Limits.read_body`'s.)
    """

    limits: ClassVar[Limits]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._piece = bytearray(PIECE)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._piece[:nbytes]))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > self.limits.connections:
            transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_request()
        # The headers are here: from now on `Limits.read_body` watches the clock.
        elif self._late:
            self._late.cancel()
            self._late = None

    def pause_writing(self) -> None:
        super().pause_writing()
        # `abort`, for `close` would wait until the client has taken all that is written.
        self._stalled = self._stalled or self.loop.call_later(self.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._stalled):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        # The first timer stays: a client that sends a byte now and then gains no time by it.
        self._late = self._late or self.loop.call_later(self.limits.body_seconds, self.transport.close)


def limited(limits: Limits) -> type[Connection]:
    """Return the protocol with these limits, as uvicorn takes it."""
    return type("LimitedConnection", (Connection,), {"limits": limits})

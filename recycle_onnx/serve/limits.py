"""What one client may ask of the server: sizes, times, and how many at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields

from starlette.requests import Request

from recycle_onnx.errors import InputError
from recycle_onnx.serve.errors import ApiError

DRAINED = 16
"""A body up to so many times too large is read to its end, so that the client gets to see the error."""
MOST_TEXTS = 50_000
"""In a body, names of fields included: 4096 messages have 33 thousand at most. While they become objects the process
does nothing else: 70 ms for so many, a quarter of a second for the half million that fit 4 MiB.
"""
MOST_GROUPS = 1 << 17
"""Lists and objects in a body. The million and a half that fit 4 MiB stop the process for more than a second,
so many for 0.1 s.
"""
MAY_BE_NONE = ("queue", "caches", "prompt_cache_gb")
"""Limits that may be 0."""
SPARE_CONNECTIONS = 100
"""Beside those of requests: browsers and libraries keep some open for the next one."""


@dataclass(frozen=True)
class Limits:
    """Limits of one server; times are in seconds.

    `caches` is the number of texts kept in memory for later requests to continue from, and `prompt_cache_gb` bounds
    what of them is kept on disk, in gigabytes; 0 is nothing.

    A JSON schema of `schema_bytes` (as many characters as OpenAI's API allows) may take `schema_seconds` of
    processor time to compile.
    """

    slots: int = 2
    queue: int = 64
    caches: int = 4
    prompt_cache_gb: float = 0.0
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    queue_seconds: float = 60.0
    generation_seconds: float = 300.0
    schema_bytes: int = 120_000
    schema_seconds: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in MAY_BE_NONE else 1
            if not value >= least:
                raise InputError(f"{field.name.replace('_', ' ')} is {value}; expected at least {least}")

    @property
    def connections(self) -> int:
        """Clients that may be connected at once."""
        return self.slots + self.queue + SPARE_CONNECTIONS

    async def read_body(self, request: Request) -> bytes:
        """Read the body of a request.

        Raises:
            ApiError: 413 where it is too large, 408 where it comes too slowly.
        """
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.body_seconds):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= self.body_bytes:
                        body += piece
                    elif size > DRAINED * self.body_bytes:
                        break
        except TimeoutError as error:
            raise ApiError(408, "body_timeout", f"the body did not come within {self.body_seconds:g} s") from error
        if size > self.body_bytes:
            raise ApiError(413, "request_too_large", f"the body is larger than {self.body_bytes} bytes: send less text")
        return bytes(body)


def check_pieces(body: bytes) -> None:
    """Refuse JSON of more pieces than any request needs, before they become objects.

    Raises:
        ApiError: 413.
    """
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # now a quote begins or ends a text
    if (texts := plain.count(b'"') // 2) > MOST_TEXTS:
        raise _too_many(texts, "texts and names", MOST_TEXTS)
    outside = b"".join(plain.split(b'"')[::2])
    if (groups := outside.count(b"[") + outside.count(b"{")) > MOST_GROUPS:
        raise _too_many(groups, "lists and objects", MOST_GROUPS)


def _too_many(count: int, what: str, most: int) -> ApiError:
    return ApiError(413, "request_too_large", f"the body holds {count} {what}; expected at most {most}")

"""Requests to a server that runs in a thread of the worker: bodies, and raw bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.server import Address, Server, Uvicorn
from tests.fuzz.mutations import mutated, mutated_bytes
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE

SHARED: dict[str, Any] = {
    "model": "tiny", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a", "b"], "stream": False,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"7": 1.5}, "strategy": "verify", "chain": 2,
    "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "n": 1, "user": "me",
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 4}}, "required": ["name"]}
TURNS = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
PLAIN_TURNS = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
OPTIONS = {"num_predict": 2, "temperature": 0.5, "top_k": 5, "seed": 1, "stop": ["a"], "repeat_penalty": 1.1}
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "/v1/chat/completions",
        {
            "messages": TURNS, "logprobs": True, "top_logprobs": 2, "metadata": {"a": "b"}, **SHARED,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        },
    ),
    ("/v1/completions", {"prompt": ["the cat", "a dog"], "logprobs": 2, **SHARED}),
    (
        "/v1/responses",
        {
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]}],
            "instructions": "a", "max_output_tokens": 2, "stream": True, "store": False, "temperature": 0.5, "seed": 1,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}, "metadata": {"a": "b"},
        },
    ),
    ("/v1/embeddings", {"input": ["a", "b"], "dimensions": 3, "encoding_format": "base64", "pooling": "last"}),
    (
        "/v1/messages",
        {
            "messages": TURNS[1:], "system": [{"type": "text", "text": "a"}], "max_tokens": 2, "stream": True,
            "temperature": 0.5, "top_k": 5, "stop_sequences": ["a"], "metadata": {"user_id": "me"},
        },
    ),
    ("/api/chat", {"messages": PLAIN_TURNS, "options": OPTIONS, "format": SCHEMA, "keep_alive": "5m", "think": False}),
    ("/api/generate", {"prompt": "a", "system": "b", "options": OPTIONS, "raw": False, "stream": False}),
    ("/api/embed", {"input": ["a", "b"], "dimensions": 3, "truncate": False}),
    ("/tokenize", {"content": "the cat", "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/apply-template", {"messages": TURNS}),
)  # fmt: skip


class Requests:
    """An answer of 500 is a foreign exception; no answer at all is one that took too long."""

    def __init__(self, folder: Path) -> None:
        export(tiny.write_checkpoint(folder / "model", tiny.tiny_config()), folder / "bundle")
        model = recycle_onnx.load(folder / "bundle", threads=1)
        limits = Limits(body_seconds=1, generation_seconds=10, schema_seconds=1)
        server = Server(model, "tiny", Address(port=0), limits)
        started: list[Uvicorn] = []
        threading.Thread(target=lambda: asyncio.run(server.run(started.append)), daemon=True).start()
        while not (started and started[0].started):
            time.sleep(0.01)
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._address = host, int(port)

    def prepare(self, dice: Random) -> None:
        path, fields = dice.choice(BODIES)
        body = json.dumps(mutated(dice, fields)).encode()
        if dice.random() < 0.1:
            body = mutated_bytes(dice, body)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._sent = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        if dice.random() < 0.05:
            self._sent = mutated_bytes(dice, self._sent, self._sent.index(b"{") if b"{" in self._sent else None)

    def use(self) -> None:
        answer = bytearray()
        with socket.create_connection(self._address, timeout=PATIENCE) as connection:
            connection.sendall(self._sent)
            try:
                while piece := connection.recv(1 << 16):
                    answer += piece
            except ConnectionError:
                pass
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        status = head[9:12].decode(errors="replace")
        if (status >= "500" and status not in ("503", "504")) or b'"internal_error"' in body:
            raise AssertionError(f"{head!r} {body!r} to {self._sent[:2000]!r}")
        if status != "200":
            raise InputError(f"{status} {body!r:.300}")

    def restore(self) -> None:
        """Nothing was changed."""

"""The event loop never waits for what one client sends: everybody else, /health first, is answered meanwhile."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from recycle_onnx.serve.limits import MOST_GROUPS, Limits
from tests.helpers.patience import PATIENCE
from tests.helpers.speed import million_turns
from tests.serve.conftest import Running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LARGEST = Limits().body_bytes
ASKED = '{"messages":[{"role":"user","content":"a"}],'


def filled(head: str, item: str, tail: str, most: int = LARGEST) -> bytes:
    """The largest body of so many items."""
    count = min(most, (LARGEST - len(head) - len(tail)) // (len(item) + 1))
    return (head + ",".join([item] * count) + tail).encode()


SCHEMA = ASKED + '"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"enum":['
BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "tokens": (TEXT, filled('{"prompt":[', "1", "]}"), 400, "context_length_exceeded"),
    "lists": (TEXT, filled('{"prompt":[', "[]", "]}"), 413, "request_too_large"),
    "objects": (CHAT, filled('{"messages":[', "{}", "]}"), 413, "request_too_large"),
    "lists in a schema": (CHAT, filled(SCHEMA, "[]", "]}}}}"), 413, "request_too_large"),
    "numbers in a schema": (CHAT, filled(SCHEMA, "1", "]}}}}"), 400, "invalid_value"),
    "lists in a field that is none": (CHAT, filled(ASKED + '"a":[', "[]", "]}"), 413, "request_too_large"),
    "escaped quotes in names": (CHAT, filled(ASKED + '"metadata":{', '"\\\\":"\\\\"', "}}"), 413, "request_too_large"),
    "as many lists as may be": (
        TEXT, filled('{"prompt":[', "[]", "]}", MOST_GROUPS - 2), 400, "invalid_value",
    ),
    "a text": (TEXT, b'{"prompt":"' + b"[{" * (LARGEST // 2 - 10) + b'"}', 400, "context_length_exceeded"),
    "a text of escapes": (TEXT, b'{"prompt":"' + rb"\"" * (LARGEST // 2 - 10) + b'"}', 400, "context_length_exceeded"),
}  # fmt: skip


def connected(running: Running) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)


def ask_meanwhile(running: Running, work: Callable[[], object]) -> list[float]:
    """What each of many questions to /health waited for while another thread did some work.

    In seconds of this process, which are no more on a busy machine: the server and its clients are both in it.
    """
    connection, seconds = connected(running), []
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not working.done():
            started = time.process_time()
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            seconds.append(time.process_time() - started)
            time.sleep(0.002)
        working.result()
    connection.close()
    return seconds


@pytest.mark.parametrize("name", BODIES)
def test_the_largest_bodies_keep_nobody_waiting(name: str, server: Running) -> None:
    path, body, status, code = BODIES[name]

    def post() -> None:
        connection = connected(server)
        for _ in range(2):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read().decode()
            assert (response.status, f'"code":"{code}"' in answer) == (status, True), answer
        connection.close()

    assert max(ask_meanwhile(server, post)) < 40 * million_turns()  # a second where this was written, 14 were seen


def test_a_body_in_chunks_of_a_byte_keeps_nobody_waiting(server: Running) -> None:
    """They take a hundred times as long as in one piece; read at once, as asyncio would, nobody is answered.

    The longest wait is compared with what the whole body takes, so that no speed of the machine matters: a tenth of
    it here, and half of it where a read takes asyncio's 256 KiB.
    """

    def post() -> None:
        connection = connected(server)
        connection.putrequest("POST", TEXT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(b"1\r\na\r\n" * 150_000 + b"0\r\n\r\n")
        assert b'"code":"invalid_json"' in connection.getresponse().read()
        connection.close()

    started = time.process_time()
    seconds = ask_meanwhile(server, post)
    assert max(seconds) < 0.3 * (time.process_time() - started)

"""Clients that hold a connection and ask nothing, or do not read what they asked for."""

from __future__ import annotations

import http.client
import json
import socket
import time
from contextlib import ExitStack

import pytest
from openai import OpenAI

from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import SPARE_CONNECTIONS, Limits
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import ENDLESS, NAME, SHORT, Running, limits_of, serving, wait_until

HALF = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def connected(running: Running) -> socket.socket:
    host, _, port = running.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes it, before the socket's timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def read_answer(connection: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(100_000)
        assert piece
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begins", [b"", HALF])
def test_a_request_that_does_not_come_is_not_waited_for(begins: bytes, endless_model: Model) -> None:
    with serving(endless_model, limits_of(body_seconds=SHORT)) as running, connected(running) as connection:
        connection.sendall(begins)
        assert is_closed(connection)


def test_nor_the_second_one_of_a_connection(endless_model: Model) -> None:
    with serving(endless_model, Limits(body_seconds=1)) as running, connected(running) as connection:
        for _ in range(2):
            connection.sendall(HALF + b"\r\n")
            read_answer(connection)
        connection.sendall(HALF)
        assert is_closed(connection)


def test_a_long_answer_is_no_late_request(endless_model: Model) -> None:
    """It comes for longer than a request, or a client's reading, may take."""
    with serving(endless_model, limits_of(body_seconds=0.5)) as running, ExitStack() as stack:
        connection = ask_for_a_stream(running, stack)
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            assert connection.recv(100_000)


def test_more_connections_than_are_served_are_closed(endless_model: Model) -> None:
    limits = Limits(slots=1, queue=0)
    with serving(endless_model, limits) as running, ExitStack() as stack:
        open_ = [stack.enter_context(connected(running)) for _ in range(limits.connections)]
        wait_until(lambda: len(running.uvicorn.server_state.connections) == limits.connections)
        with connected(running) as one_more:
            assert is_closed(one_more)
        open_[0].sendall(HALF + b"\r\n")
        read_answer(open_[0])
        for connection in open_[1:]:
            connection.close()
        wait_until(lambda: len(running.uvicorn.server_state.connections) < SPARE_CONNECTIONS)
        with connected(running) as another:
            another.sendall(HALF + b"\r\n")
            read_answer(another)


def ask_for_a_stream(running: Running, stack: ExitStack) -> socket.socket:
    """A stream into a window so small that the server soon has to wait for who does not read."""
    connection = stack.enter_context(socket.socket())
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    host, _, port = running.url.removeprefix("http://").partition(":")
    connection.connect((host, int(port)))
    body = json.dumps({"prompt": "the cat", "max_tokens": ENDLESS, "stream": True, "logprobs": 5}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_a_client_that_does_not_read_is_let_go(endless_model: Model) -> None:
    with serving(endless_model, limits_of(body_seconds=SHORT)) as running, ExitStack() as stack:
        ask_for_a_stream(running, stack)
        wait_until(lambda: running.busy == 1)
        wait_until(lambda: not running.uvicorn.server_state.connections and running.busy == 0)


def test_its_answer_takes_no_longer_than_others(endless_model: Model) -> None:
    with serving(endless_model, Limits(generation_seconds=1)) as running, ExitStack() as stack:
        ask_for_a_stream(running, stack)
        wait_until(lambda: running.busy == 1)
        wait_until(lambda: running.busy == 0)
        assert running.uvicorn.server_state.connections  # it is still there


def test_others_are_served_meanwhile(server: Running, client: OpenAI) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(server)).sendall(HALF)
        assert client.completions.create(model=NAME, prompt="a", max_tokens=2).choices


def test_answers_are_sent_at_once(server: Running) -> None:
    """Without TCP_NODELAY the second part of an answer waits for the client to acknowledge the first, 40 ms later."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    transports = [one.transport for one in server.uvicorn.server_state.connections]  # type: ignore[union-attr]
    sockets = [transport.get_extra_info("socket") for transport in transports]
    assert sockets
    assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in sockets)
    connection.close()

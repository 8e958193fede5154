"""Clients of a server, honest and hostile, for soak_server.py; also a program of its own, so that they use its memory.

python benchmarks/soak_clients.py URL --seconds 60 --clients 100 --hostile 5
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PATIENCE = 60.0
"""Seconds within which an honest request must be answered."""
ONE_TOKEN_REQUESTS = 200
PROMPTS = ("Once upon a time", "One day, a little fox", "The sun was hot and", "Tim and Sue saw something shiny " * 6)
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}


def honest_request(kind: int) -> tuple[str, dict[str, Any]]:
    """Path and body; one of 24, each with one right answer."""
    prompt, length = PROMPTS[kind % 4], 1 + 5 * (kind % 3)
    shared = {"max_tokens": length, "temperature": 0, "strategy": ("auto", "full", "verify")[kind % 3]}
    if kind % 8 == 7:
        wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        return CHAT, {"messages": [{"role": "user", "content": prompt}], "response_format": wanted, **shared}
    if kind % 2:
        return CHAT, {"messages": [{"role": "user", "content": prompt}], "stream": kind % 4 == 1, **shared}
    return TEXT, {"prompt": prompt, "stream": kind % 4 == 0, "logprobs": kind % 3, **shared}


@dataclass
class Soak:
    """All clients of one server until `end`, and what became of their requests."""

    host: str
    end: float
    failures: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=lambda: {"health": 0.0, "honest": 0.0})
    expected: dict[int, str] = field(default_factory=dict)

    def learn(self) -> None:
        """Return what the honest requests are answered while nobody else asks."""
        connection = self.connect()
        self.expected = {kind: self.ask(connection, kind) for kind in range(24)}
        connection.close()

    def one_token_ms(self) -> float:
        """Median of 200 requests for one token, one after another on one connection, while nobody else asks."""
        connection, seconds = self.connect(), []
        for _ in range(ONE_TOKEN_REQUESTS):
            started = time.perf_counter()
            send(connection, TEXT, {"prompt": PROMPTS[0], "max_tokens": 1, "temperature": 0}).read()
            seconds.append(time.perf_counter() - started)
        connection.close()
        return 1000 * statistics.median(seconds)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, timeout=PATIENCE)

    def ask(self, connection: http.client.HTTPConnection, kind: int) -> str:
        """Return the text of the answer to an honest request."""
        path, asked = honest_request(kind)
        try:
            response = send(connection, path, asked)
        except ConnectionError:  # one that was idle: as HTTP libraries do, which are ready for a server that closes it
            connection.close()
            response = send(connection, path, asked)
        body = response.read().decode()
        if response.status != 200:
            raise AssertionError(f"{response.status} {body[:200]}")
        if not asked.get("stream"):
            return text_of(json.loads(body))
        lines = [line.removeprefix("data: ") for line in body.splitlines() if line]
        if lines[-1] != "[DONE]":
            raise AssertionError(f"a stream ends with {lines[-1][:200]}")
        return "".join(text_of(json.loads(line)) for line in lines[:-1])

    def rounds(self) -> Iterator[None]:
        """As many as there is time for; one at least, however busy the machine is."""
        yield
        while time.monotonic() < self.end:
            yield

    def honest(self, number: int) -> None:
        """One after another on one connection, with pauses to think."""
        dice = random.Random(number)
        connection = self.connect()
        for _ in self.rounds():
            kind, started = dice.randrange(24), time.monotonic()
            try:
                text = self.ask(connection, kind)
                if text != self.expected[kind]:
                    raise AssertionError(f"{text!r} in the place of {self.expected[kind]!r}")
                self.answers["honest"] += 1
            except (AssertionError, OSError, http.client.HTTPException) as error:
                self.failures.append(f"request {kind}: {type(error).__name__} {error}")
                connection.close()
            self.slowest["honest"] = max(self.slowest["honest"], time.monotonic() - started)
            time.sleep(dice.uniform(1, 4))
        connection.close()

    def watch(self) -> None:
        """Ask five times in a second whether the server is well."""
        connection = self.connect()
        for _ in self.rounds():
            started = time.monotonic()
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
            except ConnectionError:  # it was idle for too long; the next one is a new one
                connection.close()
            self.slowest["health"] = max(self.slowest["health"], time.monotonic() - started)
            time.sleep(0.2)
        connection.close()

    def hostile(self, number: int) -> None:
        """Whatever it is answered, or not answered, it goes on."""
        kinds: list[Callable[[random.Random], None]] = [
            self._send_schema, self._read_nothing, self._send_half, self._send_megabytes, self._vanish,
        ]  # fmt: skip
        dice = random.Random(-1 - number)
        for _ in self.rounds():
            with suppress(OSError, http.client.HTTPException):
                kinds[number % len(kinds)](dice)
            self.answers["hostile"] += 1
            time.sleep(0.1)

    def _send_schema(self, dice: random.Random) -> None:
        """One that would take hours to compile, another one every time."""
        patterns = [{"type": "string", "pattern": f"^.*{dice.randrange(10**6)}.*$"} for _ in range(30)]
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"allOf": patterns}}}
        self._post(CHAT, {"messages": [{"role": "user", "content": "a"}], "response_format": wanted})

    def _send_megabytes(self, dice: random.Random) -> None:
        bodies: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": "a"}] * 100_000},
            {"messages": [{"role": "user", "content": "a " * 1_900_000}]},
            {"messages": [], "logit_bias": {str(n): 1 for n in range(250_000)}},
            {"messages": [{"role": "user", "content": "a"}], "metadata": {str(n): "" for n in range(250_000)}},
        ]
        self._post(CHAT, dice.choice(bodies))

    def _post(self, path: str, asked: dict[str, Any]) -> None:
        connection = self.connect()
        send(connection, path, asked).read()
        connection.close()

    def _read_nothing(self, dice: random.Random) -> None:
        with self._begin({"prompt": "a", "max_tokens": 2000, "stream": True, "logprobs": 5}):
            time.sleep(dice.uniform(1, 5))

    def _vanish(self, dice: random.Random) -> None:
        with self._begin({"prompt": "a", "max_tokens": 2000, "stream": dice.random() < 0.5}) as connection:
            connection.settimeout(dice.uniform(0.001, 0.5))
            connection.recv(200)

    def _send_half(self, dice: random.Random) -> None:
        with self._socket() as connection:
            connection.sendall(
                b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n" + b"\r\n{" * (dice.random() < 0.5)
            )
            time.sleep(dice.uniform(0, 3))

    def _begin(self, asked: dict[str, Any]) -> socket.socket:
        body = json.dumps(asked)
        connection = self._socket()
        head = (
            f"POST {TEXT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        return connection

    def _socket(self) -> socket.socket:
        host, _, port = self.host.partition(":")
        return socket.create_connection((host, int(port)), timeout=PATIENCE)


def send(connection: http.client.HTTPConnection, path: str, asked: dict[str, Any]) -> http.client.HTTPResponse:
    """Send a request; give the response, whose body is still to be read."""
    connection.request("POST", path, json.dumps(asked), {"Content-Type": "application/json"})
    return connection.getresponse()


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of one answer, or of one chunk of a stream."""
    texts = [
        one.get("text") or (one.get("message") or one.get("delta") or {}).get("content") for one in answer["choices"]
    ]
    return "".join(text or "" for text in texts)


@click.command()
@click.argument("url")
@click.option("--seconds", default=60.0)
@click.option("--clients", default=100)
@click.option("--hostile", default=5)
def main(url: str, seconds: float, clients: int, hostile: int) -> None:
    """Have clients ask the server at URL; print as JSON how it went."""
    soak = Soak(url.removeprefix("http://"), time.monotonic() + seconds)
    soak.learn()
    one_token_ms = round(soak.one_token_ms(), 2)
    with ThreadPoolExecutor(clients + 1) as pool:
        work = [pool.submit(soak.watch)]
        work += [pool.submit(soak.hostile, number) for number in range(hostile)]
        work += [pool.submit(soak.honest, number) for number in range(clients - hostile)]
        for one in work:
            one.result()
    slowest = {f"slowest_{name}_s": round(worst, 3) for name, worst in soak.slowest.items()}
    click.echo(
        json.dumps(
            {
                "answers": soak.answers,
                "one_token_post_median_ms": one_token_ms,
                **slowest,
                "failures": soak.failures[:20],
            }
        )
    )


if __name__ == "__main__":
    main()

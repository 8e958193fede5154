"""Tokens a second of a server that answers several clients at once.

    python benchmarks/clients.py BUNDLE [--threads 2] [--slots 2] [--new-tokens 64] [--rounds 3] [--strategy auto]
        [--most 8]

A round asks with 1, 2, 4 and 8 clients, one number after the other, so that a busy moment of the machine meets all of
them. Each client sends a question of its own and reads the stream; the server's caches know none of them. Printed are
medians of the rounds: tokens a second of all clients together, tokens a second of processor time, which others on the
machine distort less, that as a multiple of one client's in the same round, and the time to a client's first token.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import click

import recycle_onnx
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.server import Address, Server, Uvicorn


@dataclass(frozen=True)
class Streamed:
    """What a client saw: tokens, and seconds to the first of them."""

    tokens: int
    first: float


@contextmanager
def serving(model: Model, slots: int) -> Iterator[str]:
    """Serve a model on a free port; give its address."""
    server = Server(model, "model", Address(port=0), Limits(slots=slots))
    started: list[Uvicorn] = []
    thread = threading.Thread(target=lambda: asyncio.run(server.run(started.append)))
    thread.start()
    while not (started and started[0].started):
        time.sleep(0.01)
    try:
        yield server.url
    finally:
        started[0].should_exit = True
        thread.join()


def ask(url: str, question: str, settings: dict[str, Any]) -> Streamed:
    """Ask one question, and read its answer to the end."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True, **settings}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    started, first, tokens = time.perf_counter(), 0.0, 0
    with urlopen(request) as response:
        for line in response:
            if b'"recycle":{' in line.replace(b" ", b""):
                tokens += 1
                first = first or time.perf_counter() - started
    return Streamed(tokens, first)


class Together(NamedTuple):
    """What all clients saw together: tokens a second, those a second of processor time, seconds to the first."""

    speed: float
    per_processor: float
    first: float


def asked_at_once(url: str, questions: list[str], settings: dict[str, Any]) -> Together:
    """Let a client ask each question, all at once."""
    started, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(lambda question: ask(url, question, settings), questions))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    tokens = sum(answer.tokens for answer in answers)
    return Together(tokens / seconds, tokens / used, median(answer.first for answer in answers))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True)
@click.option("--slots", default=2, show_default=True)
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--strategy", default="auto", show_default=True)
@click.option("--most", default=8, show_default=True, help="Clients at once.")
def main(bundle: Path, threads: int, slots: int, new_tokens: int, rounds: int, strategy: str, most: int) -> None:
    """Measure a server with BUNDLE."""
    lines = (files("recycle_onnx") / "questions.txt").read_text(encoding="utf-8").splitlines()
    questions, numbers = [line for line in lines if line], count()
    settings = {"max_tokens": new_tokens, "strategy": strategy}
    numbers_of_clients = [clients for clients in (1, 2, 4, 8) if clients <= most]
    measured: list[list[Together]] = []
    with recycle_onnx.load(bundle, threads=threads, fixed_threads=True) as model, serving(model, slots) as url:
        ask(url, "Who are you?", settings)
        for _ in range(rounds):
            fresh = [[questions[next(numbers) % len(questions)] for _ in range(n)] for n in numbers_of_clients]
            measured.append([asked_at_once(url, some, settings) for some in fresh])
    for place, clients in enumerate(numbers_of_clients):
        speed, per_processor, first = map(median, zip(*(one[place] for one in measured), strict=True))
        ratio = median(one[place].per_processor / one[0].per_processor for one in measured)
        print(
            f"{clients} clients: {speed:.1f} tokens/s together; {per_processor:.1f} a second of processor time, "
            f"{ratio:.2f}x one client's; first token {first:.2f} s"
        )


if __name__ == "__main__":
    main()

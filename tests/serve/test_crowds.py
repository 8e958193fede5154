"""Many clients at once, clients that go away, and what happens when there is no more room."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI

from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import ENDLESS, NAME, SHORT, Running, limits_of, serving, wait_until

TEXT = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "the cat", "max_tokens": ENDLESS}


@contextmanager
def sent(running: Running, fields: dict[str, Any]) -> Iterator[socket.socket]:
    """A request whose answer nobody reads, until the connection is closed."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    body = json.dumps(fields).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {TEXT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield connection


def test_twenty_clients_at_once_get_their_own_texts(server: Running, endless_model: Model) -> None:
    prompts = [f"the {('cat', 'dog', 'hen')[i % 3]} sat on {i}" for i in range(20)]
    expected = [endless_model.generate(prompt, max_new_tokens=30).text for prompt in prompts]

    def ask(number: int) -> str:
        asked: Any = {"model": NAME, "prompt": prompts[number], "max_tokens": 30}
        if number % 2:
            return server.client().completions.create(**asked).choices[0].text
        return "".join(chunk.choices[0].text for chunk in server.client().completions.create(**asked, stream=True))

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == expected
    wait_until(lambda: server.busy == 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_slot(stream: bool, server: Running) -> None:
    before = server.new_tokens
    with sent(server, {**LONG, "stream": stream}) as connection:
        wait_until(lambda: server.busy == 1)
        if stream:
            connection.recv(1)
    wait_until(lambda: server.busy == 0)
    assert server.client().models.list().data  # so that the event loop has counted what was made
    assert server.new_tokens - before < ENDLESS


def test_a_client_that_goes_away_leaves_the_queue(endless_model: Model) -> None:
    with serving(endless_model, Limits(slots=1)) as running:
        with sent(running, LONG):
            wait_until(lambda: running.busy == 1)
            with sent(running, LONG):
                wait_until(lambda: running.waiting == 1)
            wait_until(lambda: running.waiting == 0)
            assert running.busy == 1
        wait_until(lambda: running.busy == 0)


def test_two_hundred_disconnects_leave_all_slots_free(endless_model: Model) -> None:
    """At any moment: before, in and after the queue, before the first token, in mid-stream."""
    expected = endless_model.generate("the cat", max_new_tokens=20).text
    with serving(endless_model, Limits(slots=2, queue=300)) as running:

        def vanish(number: int) -> None:
            moment = random.Random(number)
            with sent(running, {**LONG, "stream": number % 3 > 0}) as connection:
                connection.settimeout(moment.choice([0.001, 0.01, 0.1]))
                try:
                    for _ in range(moment.randrange(4)):
                        connection.recv(200)
                except TimeoutError:
                    pass

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(vanish, range(200)))
        wait_until(lambda: running.busy == running.waiting == 0)
        asked: Any = {"model": NAME, "prompt": "the cat", "max_tokens": 20}
        for _ in range(3):
            assert running.client().completions.create(**asked).choices[0].text == expected


def test_a_full_queue_is_told(endless_model: Model) -> None:
    with serving(endless_model, Limits(slots=1, queue=1)) as running, sent(running, LONG):
        wait_until(lambda: running.busy == 1)
        with sent(running, LONG):
            wait_until(lambda: running.waiting == 1)
            with pytest.raises(openai.RateLimitError, match="waiting") as found:
                running.client().completions.create(model=NAME, prompt="a")
            assert found.value.response.headers["retry-after"] == "1"
            assert found.value.code == "queue_full"


def test_a_wait_that_is_too_long_is_told(endless_model: Model) -> None:
    limits = limits_of(slots=1, queue_seconds=SHORT)
    with serving(endless_model, limits) as running, sent(running, LONG):
        wait_until(lambda: running.busy == 1)
        with pytest.raises(openai.InternalServerError, match="no slot became free") as found:
            running.client().completions.create(model=NAME, prompt="a")
        assert found.value.status_code == 503
        assert found.value.code == "queue_timeout"


def test_an_answer_that_takes_too_long_is_ended(endless_model: Model) -> None:
    with serving(endless_model, Limits(generation_seconds=1)) as running:
        asked: Any = {"model": NAME, **LONG}
        with pytest.raises(openai.InternalServerError, match="more than 1 s") as found:
            running.client().completions.create(**asked)
        assert (found.value.status_code, found.value.code) == (504, "generation_timeout")
        stream = running.client().completions.create(**asked, stream=True)
        before = [next(stream) for _ in range(3)]
        with pytest.raises(openai.APIError, match="more than 1 s"):
            deque(stream, maxlen=0)
        assert all(chunk.choices for chunk in before)
        wait_until(lambda: running.busy == 0)


def test_a_body_that_does_not_come_is_not_waited_for(endless_model: Model) -> None:
    with serving(endless_model, limits_of(body_seconds=SHORT)) as running:
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
        connection.putrequest("POST", TEXT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b'{"prompt":')
        response = connection.getresponse()
        assert response.status == 408
        assert json.loads(response.read())["error"]["code"] == "body_timeout"
        connection.close()


def test_the_event_loop_is_free_while_models_work(server: Running, client: OpenAI) -> None:
    with sent(server, LONG), sent(server, LONG):
        wait_until(lambda: server.busy == 2)
        assert client.models.list().data
        assert server.busy == 2  # it did not wait for them
    wait_until(lambda: server.busy == 0)


def test_an_ending_server_ends_its_answers_and_its_queue(endless_model: Model) -> None:
    with serving(endless_model, Limits(slots=1)) as running, ThreadPoolExecutor(1) as pool:
        asked: Any = {"model": NAME, **LONG}
        stream = running.client().completions.create(**asked, stream=True)
        assert next(stream).choices
        waiting = pool.submit(lambda: running.client().completions.create(**asked))
        wait_until(lambda: running.waiting == 1)
        running.uvicorn.should_exit = True
        with pytest.raises(openai.APIError, match="shutting down"):
            deque(stream, maxlen=0)
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            waiting.result()

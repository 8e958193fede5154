"""A server on a free port of this machine, and a model that writes as long as one lets it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

import recycle_onnx
from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.server import Address, Server, Uvicorn
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE

if find_spec("schemathesis") is None:  # which needs a newer rich than the oldest that the command line takes
    collect_ignore = ["test_openapi.py"]

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)
NAME = "tiny"
ENDLESS = 30_000
"""Tokens, within the context of `endless_model`: 13 s of work where this was written, with nothing else to do."""


SHORT = 0.2
"""Seconds that a test waits for, where nothing has to come to an end before them."""


def limits_of(**values: float) -> Limits:
    """Limits with times shorter than any that a user may set: a test waits for them to pass."""
    limits = Limits()
    for name, value in values.items():
        object.__setattr__(limits, name, value)
    return limits


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@dataclass
class Running:
    """A server at work in a thread of its own."""

    url: str
    uvicorn: Uvicorn

    def client(self, api_key: str = "none", retries: int = 0) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=retries, timeout=PATIENCE)

    @property
    def busy(self) -> int:
        return self.uvicorn.service.workers.busy

    @property
    def waiting(self) -> int:
        return self.uvicorn.service.workers.waiting

    @property
    def new_tokens(self) -> float:
        """Of all answers so far, when no slot is busy."""
        families = text_string_to_metric_families(self.uvicorn.service.metrics.text().decode())
        samples = (sample for family in families for sample in family.samples)
        new = ("recycle_onnx_tokens_total", {"kind": "new"})
        return sum(sample.value for sample in samples if (sample.name, sample.labels) == new)


@contextmanager
def serving(
    model: Model,
    limits: Limits | None = None,
    token: str | None = None,
    origins: frozenset[str] = frozenset(),
    strict: bool = False,
) -> Iterator[Running]:
    server = Server(model, NAME, Address(port=0, token=token, origins=origins), limits or Limits(), strict)
    started: list[Uvicorn] = []
    thread = threading.Thread(target=lambda: asyncio.run(server.run(started.append)))
    thread.start()
    try:
        while not (started and started[0].started):
            assert thread.is_alive()
            thread.join(0.01)
        yield Running(server.url, started[0])
    finally:
        started[0].should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model with a chat template, a module and a long context, that never ends by itself."""
    folder = tmp_path_factory.mktemp("endless")
    checkpoint = tiny.write_endless_base(folder / "model", context_length=32768)
    config = read_json(checkpoint / "tokenizer_config.json")
    write_json(checkpoint / "tokenizer_config.json", {**config, "chat_template": TEMPLATE})
    attach(checkpoint, checkpoint)
    export(checkpoint, folder / "bundle")
    return recycle_onnx.load(folder / "bundle", threads=1)


@pytest.fixture(scope="session")
def ending_model(tiny_bundle: Path) -> Iterator[Model]:
    """A tiny model with a token that ends its text, which structured output needs."""
    with recycle_onnx.load(tiny_bundle, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def server(endless_model: Model) -> Iterator[Running]:
    with serving(endless_model) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return server.client()

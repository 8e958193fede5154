"""What a request holds is free again after its deadline, whatever holds it, and the server answers meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.structured import JsonSchema
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.trial import Trials, is_small_and_plain
from tests.helpers import hostile_graphs
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import NAME, SHORT, Running, limits_of, serving, wait_until
from tests.serve.test_crowds import sent
from tests.serve.test_refusals import CHAT, post

STRING = {"type": "string"}
ENDLESS_SCHEMA = {"allOf": [{"type": "string", "pattern": f"^.*a{n}.*$"} for n in range(30)]}
"""A kilobyte that llguidance compiles for hours."""


def check_health(running: Running) -> None:
    with urlopen(f"{running.url}/health", timeout=PATIENCE) as response:
        assert json.load(response)["status"] == "ok"


def ask_for(schema: dict[str, Any], **fields: Any) -> bytes:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return json.dumps(
        {"messages": [{"role": "user", "content": "a"}], "response_format": wanted, "max_tokens": 8, **fields}
    ).encode()


@pytest.fixture(scope="module")
def hung_model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    bundle = hostile_graphs.write_endless(tiny_bundle, tmp_path_factory.mktemp("hung") / "bundle")
    with recycle_onnx.load(bundle, threads=1) as model:
        yield model


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_run_that_does_not_end_is_ended(stream: bool, hung_model: Model) -> None:
    with serving(hung_model, limits_of(slots=1, generation_seconds=SHORT)) as running:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match=r"more than 0\.2 s"):
                running.client().completions.create(model=NAME, prompt="the cat", stream=stream)
            wait_until(lambda: running.busy == 0)
            check_health(running)


def test_a_server_ends_in_the_middle_of_a_run_that_does_not(hung_model: Model) -> None:
    with serving(hung_model, Limits(slots=1)) as running:
        with sent(running, {"prompt": "the cat"}):
            wait_until(lambda: running.busy == 1)
        assert running.busy == 1


def test_a_schema_that_does_not_compile_in_time_is_refused(ending_model: Model) -> None:
    with serving(ending_model, limits_of(slots=1, schema_seconds=SHORT)) as running:
        status, answer = post(running, CHAT, ask_for(ENDLESS_SCHEMA))
        assert status == 400
        assert "more than 0.2 s to compile" in answer["error"]["message"]
        wait_until(lambda: running.busy == 0)


def test_one_that_does_is_followed(ending_model: Model) -> None:
    with serving(ending_model, Limits(schema_seconds=60)) as running:
        assert post(running, CHAT, ask_for({"anyOf": [STRING, {"type": "null"}]}))[0] == 200


@pytest.mark.skipif(sys.platform == "win32", reason="knows no processor time of another process")
def test_only_the_processor_time_of_compiling_counts(ending_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine: the trial takes longer than its time, since its process has to stand still meanwhile."""
    short, start = 0.2, subprocess.Popen
    stood_still: list[int] = []

    def held_up(*arguments: Any, **settings: Any) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = start(*arguments, **settings)
        process.send_signal(signal.SIGSTOP)
        threading.Timer(2 * short, process.send_signal, [signal.SIGCONT]).start()
        stood_still.append(process.pid)
        return process

    with monkeypatch.context() as patched:
        patched.setattr("recycle_onnx.serve.trial.subprocess.Popen", held_up)
        Trials(ending_model, short).check(JsonSchema({"anyOf": [STRING, {"type": "null"}]}), None)
    assert stood_still
    with pytest.raises(InputError, match=r"more than 0\.2 s to compile"):
        Trials(ending_model, short).check(JsonSchema(ENDLESS_SCHEMA), None)


def test_its_request_takes_no_longer_than_others(ending_model: Model) -> None:
    with serving(ending_model, limits_of(slots=1, generation_seconds=SHORT)) as running:
        status, answer = post(running, CHAT, ask_for(ENDLESS_SCHEMA))
        assert (status, answer["error"]["code"]) == (504, "generation_timeout")
        wait_until(lambda: running.busy == 0)
        check_health(running)


def test_a_schema_of_megabytes_is_refused(ending_model: Model) -> None:
    with serving(ending_model) as running:
        status, answer = post(running, CHAT, ask_for({"enum": [f"{n:040}" for n in range(40_000)]}))
        assert status == 400
        assert "expected at most 120000" in answer["error"]["message"]
        assert answer["error"]["param"] == "response_format.json_schema.schema"


def test_a_schema_that_is_none_is_told_from_the_trial_too(ending_model: Model) -> None:
    with serving(ending_model) as running:
        status, answer = post(running, CHAT, ask_for({"allOf": [{"type": "cat"}]}))
        assert status == 400
        assert "not one to follow" in answer["error"]["message"]


def test_small_plain_schemas_need_no_trial() -> None:
    person = {"type": "object", "properties": {"name": STRING, "age": {"type": "integer"}}, "required": ["name"]}
    assert is_small_and_plain(person)
    assert is_small_and_plain({"type": "array", "items": person, "maxItems": 3})
    assert not is_small_and_plain({"type": "array", "items": {"allOf": [person]}})
    assert not is_small_and_plain({"properties": {"a": {"type": "string", "pattern": "a*"}}})
    assert not is_small_and_plain({"properties": []})
    assert not is_small_and_plain({"enum": list(range(1000))})


class Panic(BaseException):
    """What a library of Rust raises where it fails: no Exception."""


@contextmanager
def breaks() -> Iterator[Any]:
    raise Panic("the library is broken")
    yield


def test_whatever_ends_a_worker_is_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.uvicorn.service.workers, "generate", lambda order: breaks())
    status, answer = post(server, "/v1/completions", b'{"prompt": "the cat"}')
    assert status == 500
    assert answer["error"]["code"] == "internal_error"
    wait_until(lambda: server.busy == 0)
    monkeypatch.undo()
    assert server.client().completions.create(model=NAME, prompt="the cat").choices

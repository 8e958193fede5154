"""`recycle-onnx serve` as a user starts and ends it."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from recycle_onnx.runtime.model import Model
from tests.helpers import processes
from tests.helpers.command import assert_one_error, assert_refused, run
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import ENDLESS, wait_until


@contextmanager
def started(*arguments: object) -> Iterator[tuple[processes.Program, str]]:
    """The command in a process of its own, and the address that it tells."""
    process = processes.start("serve", *arguments)
    try:
        line = process.stderr.readline().decode()
        address = re.search(r"http://\S+(?= \()", line)
        assert address, line + rest_of(process)
        yield process, address[0]
    finally:
        process.kill()
        process.wait()


def rest_of(process: processes.Program) -> str:
    """What it writes to standard error until its end; `communicate` would miss what came with the first line."""
    return process.stderr.read().decode()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_ctrl_c_ends_it_in_the_middle_of_an_answer(endless_model: Model) -> None:
    with started(endless_model.bundle.folder, "--port", 0, "--name", "mine") as (process, url):
        with urlopen(f"{url}/v1/models") as response:
            assert json.load(response)["data"][0]["id"] == "mine"
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "the cat", "max_tokens": ENDLESS, "stream": True}).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            connection.recv(100)
            process.send_signal(signal.SIGINT)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        assert b"shutting down" in received
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stdout == b""
    assert_one_error(stderr.decode(), "interrupted")


def test_a_port_in_use_is_named(endless_model: Model) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("serve", endless_model.bundle.folder, "--port", port), 1, str(port), "in use", "--port")


def test_other_machines_need_a_token(endless_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECYCLE_ONNX_TOKEN", raising=False)
    result = run("serve", endless_model.bundle.folder, "--host", "0.0.0.0", "--port", 0)
    assert_refused(result, 2, "0.0.0.0", "--token", "RECYCLE_ONNX_TOKEN")


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_the_token_may_come_from_the_environment(endless_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_TOKEN", "sesame")
    with started(endless_model.bundle.folder, "--host", "0.0.0.0", "--port", 0) as (process, url):
        with urlopen(f"{url}/health") as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_server_that_was_ended_left_its_prompts_to_the_next_one(
    endless_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    body = json.dumps({"prompt": "the cat sat on the mat, " * 60, "max_tokens": 4}).encode()
    cached = []
    for _ in range(2):
        with started(endless_model.bundle.folder, "--port", 0) as (process, url):
            request = Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            with urlopen(request) as response:
                cached.append(json.load(response)["usage"]["prompt_tokens_details"]["cached_tokens"])
            process.send_signal(signal.SIGTERM)
            errors = rest_of(process)
        assert f"up to 4 GB in {tmp_path / 'prompts'}; --prompt-cache-gb 0 keeps none" in errors
    assert cached[0] == 0
    assert cached[1] >= 256


@pytest.mark.parametrize(
    ("arguments", "kept"), [([], False), (["--prompt-cache-gb", 0.5], True)], ids=["by default", "asked for"]
)
def test_prompts_of_others_are_kept_only_where_that_is_asked_for(
    arguments: list[object], kept: bool, endless_model: Model
) -> None:
    with started(endless_model.bundle.folder, "--port", 0, "--host", "0.0.0.0", "--token", "t", *arguments) as (
        process,
        url,
    ):
        with urlopen(f"{url}/health"):
            process.kill()
        errors = rest_of(process)
    assert ("are kept on disk" in errors) is kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], ["port is 99999"]),
        (["--host", "no such host"], ["no such host", "expected"]),
        (["--slots", "0"], ["slots is 0"]),
        (["--timeout", "nan"], ["nan"]),
        (["--prompt-cache-gb", "-1"], ["prompt cache gb is -1.0", "at least 0"]),
        (["--prompt-cache-gb", "nan"], ["prompt cache gb is nan"]),
        (["--token", ""], ["token is empty"]),
        (["--name", ""], ["name is empty"]),
        (["--allow-origin", "*"], ["--allow-origin", "'*'", "https://app.example"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: list[str], words: list[str], endless_model: Model) -> None:
    assert_refused(run("serve", endless_model.bundle.folder, "--port", 0, "--token", "t", *arguments), 2, *words)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert_refused(run("serve", tmp_path, "--port", 0), 2, "not a bundle")

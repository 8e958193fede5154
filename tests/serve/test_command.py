"""`recycle-onnx serve` as a user starts and ends it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from recycle_onnx.runtime.model import RecycleModel
from tests.helpers.command import assert_one_error, assert_refused, run
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import wait_until


@contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it tells."""
    command = [sys.executable, "-m", "recycle_onnx", "serve", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+(?= \()", line)
        assert found, line + process.stderr.read()
        try:
            yield process, found[0]
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_ctrl_c_ends_it_in_the_middle_of_an_answer(endless_model: RecycleModel) -> None:
    with started(endless_model.bundle.folder, "--port", 0, "--name", "mine") as (process, url):
        with urlopen(f"{url}/v1/models") as response:
            assert json.load(response)["data"][0]["id"] == "mine"
        host, port = url.removeprefix("http://").split(":")
        body = b'{"prompt": "the cat", "max_tokens": 8000, "stream": true}'
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
    assert stdout == ""
    assert_one_error(stderr, "interrupted")


def test_a_port_in_use_is_named(endless_model: RecycleModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("serve", endless_model.bundle.folder, "--port", port), 1, str(port), "in use", "--port")


def test_other_machines_need_a_token(endless_model: RecycleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECYCLE_ONNX_TOKEN", raising=False)
    result = run("serve", endless_model.bundle.folder, "--host", "0.0.0.0", "--port", 0)
    assert_refused(result, 2, "0.0.0.0", "--token", "RECYCLE_ONNX_TOKEN")


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_the_token_may_come_from_the_environment(endless_model: RecycleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_TOKEN", "sesame")
    with started(endless_model.bundle.folder, "--host", "0.0.0.0", "--port", 0) as (process, url):
        with urlopen(f"{url}/health") as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], ["port is 99999"]),
        (["--host", "no such host"], ["no such host", "expected"]),
        (["--slots", "0"], ["slots is 0"]),
        (["--timeout", "nan"], ["nan"]),
        (["--token", ""], ["token is empty"]),
        (["--name", ""], ["name is empty"]),
        (["--allow-origin", "*"], ["--allow-origin", "'*'", "https://app.example"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    arguments: list[str], words: list[str], endless_model: RecycleModel
) -> None:
    assert_refused(run("serve", endless_model.bundle.folder, "--port", 0, "--token", "t", *arguments), 2, *words)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert_refused(run("serve", tmp_path, "--port", 0), 2, "not a bundle")

"""Whatever encoding standard output has, no text ends a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes

FOX = "the \U0001f98a — é"
ENCODINGS = {"ascii": "utf-8", "ascii:strict": "utf-8", "cp1252": "cp1252", "latin-1:strict": "latin-1"}
"""PYTHONIOENCODING, and what is written then."""


def run(encoding: str, *arguments: object, stdin: str = "") -> bytes:
    """Standard output of a program that is forked, and opens its streams in this encoding."""
    program = processes.start(*arguments, stdin=stdin.encode(), env={**os.environ, "PYTHONIOENCODING": encoding})
    stdout, stderr = program.communicate()
    return checked(program.returncode, stdout, stderr)


def run_anew(encoding: str, *arguments: object, stdin: str = "") -> bytes:
    """Standard output of a program whose streams Python itself opened."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "recycle_onnx", *map(str, arguments)]
    outcome = subprocess.run(command, input=stdin.encode(), capture_output=True, env=environment)
    return checked(outcome.returncode, outcome.stdout, outcome.stderr)


def checked(code: int | None, stdout: bytes, stderr: bytes) -> bytes:
    assert code == 0, stderr
    assert b"report it" not in stderr
    return stdout


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_text_is_written(encoding: str, tiny_bundle: Path, tmp_path: Path) -> None:
    fox = tmp_path / "\U0001f98a"
    shutil.copytree(tiny_bundle, fox)
    written = ENCODINGS[encoding]
    shown = FOX.encode(written, "replace")
    assert run_anew(encoding, "generate", fox, "-", "-n", 3, stdin=FOX).startswith(shown)
    assert run(encoding, "generate", fox, "-", "-n", 3, stdin=FOX).startswith(shown)
    answer = json.loads(run(encoding, "generate", fox, "-", "-n", 3, "--json", stdin=FOX).decode(written))
    assert len(answer["tokens"]) <= 3
    assert run(encoding, "chat", fox, "-n", 8, "--seed", 3, "--temperature", 2, stdin=FOX)
    assert run(encoding, "inspect", fox)
    assert "format" in json.loads(run(encoding, "inspect", fox, "--json").decode(written))


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such names")
def test_a_name_that_is_not_utf_8_is_told_where_it_cannot_be_opened(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """ONNX Runtime cannot; whatever is read by Python alone can be called so."""
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    shutil.copytree(tiny_checkpoint, odd)
    bundle = tmp_path / "bundle"
    run("utf-8", "export", odd, bundle)
    shutil.copytree(bundle, odd / "bundle")
    assert run("utf-8", "inspect", odd / "bundle")
    command = [sys.executable, "-m", "recycle_onnx", "generate", odd / "bundle", "the cat"]
    refused = subprocess.run(command, capture_output=True)
    assert refused.returncode == 2
    assert b"is not UTF-8, and ONNX Runtime opens no such path; rename or move it" in refused.stderr

"""Whatever encoding standard output has, no text ends a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOX = "the \U0001f98a — é"
ENCODINGS = {"ascii": "utf-8", "ascii:strict": "utf-8", "cp1252": "cp1252", "latin-1:strict": "latin-1"}
"""PYTHONIOENCODING, and what is written then."""


def run(encoding: str, *arguments: object, stdin: str = "") -> bytes:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "recycle_onnx", *map(str, arguments)]
    outcome = subprocess.run(command, input=stdin.encode(), capture_output=True, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    assert b"report it" not in outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_text_is_written(encoding: str, tiny_bundle: Path, tmp_path: Path) -> None:
    fox = tmp_path / "\U0001f98a"
    shutil.copytree(tiny_bundle, fox)
    written = ENCODINGS[encoding]
    shown = FOX.encode(written, "replace")
    assert run(encoding, "generate", fox, "-", "-n", 3, stdin=FOX).startswith(shown)
    answer = json.loads(run(encoding, "generate", fox, "-", "-n", 3, "--json", stdin=FOX).decode(written))
    assert len(answer["tokens"]) <= 3
    assert run(encoding, "chat", fox, "-n", 8, "--seed", 3, "--temperature", 2, stdin=FOX)
    assert run(encoding, "inspect", fox)
    assert "format" in json.loads(run(encoding, "inspect", fox, "--json").decode(written))

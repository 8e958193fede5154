"""`optimum-cli export recycle` writes the bundle that `recycle-onnx export` writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from recycle_onnx.bundle import Bundle
from tests.helpers import tiny

pytestmark = pytest.mark.peers


def optimum(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run optimum's command in its own environment, where recycle-onnx is installed too."""
    interpreter = os.environ.get("RECYCLE_ONNX_OPTIMUM")
    assert interpreter, "RECYCLE_ONNX_OPTIMUM names no interpreter; run `make test-peers`"
    command = [interpreter, "-m", "optimum.commands.optimum_cli", "export", "recycle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_optimum_exports_what_we_export(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    done = optimum("--model", tiny_checkpoint, tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert Bundle.open(tmp_path / "bundle").digest == Bundle.open(tiny_bundle).digest
    assert optimum("--model", tiny_checkpoint, tmp_path / "bundle").returncode == 2
    assert optimum("--model", tiny_checkpoint, tmp_path / "bundle", "--force").returncode == 0


def test_an_error_is_one_line(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "model", tiny.tiny_config())
    (tmp_path / "model" / "model.safetensors").unlink()
    done = optimum("-m", tmp_path / "model", tmp_path / "bundle", "--precision", "int4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr

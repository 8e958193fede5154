"""Where reference tests get checkpoints and their torch twins from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.storage import load_model

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "stories"


def shared_folder(name: str) -> Path:
    """A file or folder of the test data that lies beside the checkout; skips where it is absent."""
    path = Path(os.environ.get("RECYCLE_ONNX_SHARED", ROOT.parent / "shared")) / name
    if path.exists():
        return path
    reason = f"needs {name}, which lies beside the project's own checkout only"
    if os.environ.get("RECYCLE_ONNX_REQUIRE_SHARED"):
        pytest.fail(reason)
    pytest.skip(reason)


def torch_model(checkpoint: Path) -> RecycleGPT:
    """Both halves in torch."""
    with Checkpoint.open(checkpoint) as source:
        return load_model(source).eval()

"""Bundles that tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from tests.helpers import tiny


@pytest.fixture(scope="session")
def endless_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes for minutes unless somebody stops it: few spaces, and no ends of lines known before."""
    folder = tmp_path_factory.mktemp("endless")
    checkpoint = tiny.write_endless_base(folder / "model", context_length=100_000)
    attach(checkpoint, checkpoint)
    export(checkpoint, folder / "bundle")
    return folder / "bundle"

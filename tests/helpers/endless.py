"""Bundles of models that never end a text by themselves."""

from __future__ import annotations

from pathlib import Path

from recycle_onnx.export import export
from tests.helpers import tiny


def write_endless_bundle(folder: Path, context_length: int) -> Path:
    """Write the bundle of a tiny model without a module, which writes to the end of its context."""
    export(tiny.write_endless_base(folder / "base", context_length), folder / "bundle")
    return folder / "bundle"

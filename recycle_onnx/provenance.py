"""`source.json`: what a checkpoint's base was made from, in the base's folder and in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recycle_onnx.files import read_json, sha256, write_json

SOURCE = "source.json"
COPY = "copy_sha256"
"""Of the safetensors file that a GGUF file was copied to: by it the copy proves that its weights are still those."""


def write_source(folder: Path, source: dict[str, Any]) -> None:
    """Record where the base in `folder` came from."""
    write_json(folder / SOURCE, source)


def read_source(*folders: Path) -> dict[str, Any] | None:
    """Read the first `source.json` of `folders`; None for a base that was a folder all along."""
    return next((read_json(folder / SOURCE) for folder in folders if (folder / SOURCE).is_file()), None)


def record_copy(folder: Path, file: Path) -> None:
    """Record in the `source.json` of `folder`, where there is one, that `file` is a copy of its source's weights."""
    if source := read_source(folder):
        write_source(folder, {**source, COPY: sha256(file)})

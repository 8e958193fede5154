"""`source.json`: what a checkpoint's base was made from, in the base's folder and in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recycle_onnx.files import read_json, write_json

SOURCE = "source.json"


def write_source(folder: Path, source: dict[str, Any]) -> None:
    """Record where the base in `folder` came from."""
    write_json(folder / SOURCE, source)


def read_source(*folders: Path) -> dict[str, Any] | None:
    """Read the first `source.json` of `folders`; None for a base that was a folder all along."""
    return next((read_json(folder / SOURCE) for folder in folders if (folder / SOURCE).is_file()), None)

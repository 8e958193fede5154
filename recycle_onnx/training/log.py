"""What happened in a training, a JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.folder import TRAINING_LOG
from recycle_onnx.files import write_bytes

LOG = TRAINING_LOG


class Log:
    """A writer to `training.jsonl` in the checkpoint; lines of `first_step` and later ones are dropped first."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._path = folder / LOG
        kept = [line for line in read_log(folder) if line.get("step", 0) < first_step] if first_step > 1 else []
        write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, **values: Any) -> None:
        """Append one line with these values."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the steps of the last training of a checkpoint, none if it was never trained."""
    path = folder / LOG
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # cut off by a kill
    return lines

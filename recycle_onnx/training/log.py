"""What happened in a training, a JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOG = "training.jsonl"


class Log:
    """Appends to `training.jsonl` in the checkpoint, after the lines before `first_step`; later ones are dropped."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder
        kept = [line for line in self._lines() if line.get("step", 0) < first_step] if first_step > 1 else []
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    @property
    def _path(self) -> Path:
        return self._folder / LOG

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        lines = []
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # cut off by a kill
        return lines

    def add(self, **values: Any) -> None:
        """Write a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

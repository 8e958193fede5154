"""A GGUF file that was named as a base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.progress import Progress

Note = Callable[[str], None]


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file, to be converted."""

    path: Path
    note: Note
    progress: Progress

    @property
    def name(self) -> str:
        return self.path.stem

    def write(self, folder: Path, *, link: bool = False) -> None:
        self._convert(folder, folder if link else None)

    def refer(self, folder: Path, place: Path) -> None:
        """Fill the empty `folder`, which will lie at `place`, with all but the weights: they stay in the file."""
        self._convert(folder, place)

    def _convert(self, folder: Path, reference_at: Path | None) -> None:
        from recycle_onnx.checkpoint.sources.gguf import convert

        convert(self.path, folder, reference_at=reference_at, note=self.note, progress=self.progress)

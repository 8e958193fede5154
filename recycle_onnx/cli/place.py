"""Where a verb's base is, and where its checkpoint goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.cli.report import progress
from recycle_onnx.cli.sources import note


@dataclass(frozen=True)
class Place:
    """The base's place, and the place of the checkpoint to write."""

    base: str
    out: Path
    revision: str | None
    reference: bool
    force: bool
    adapter: Path | None

    @contextmanager
    def opened(self, keep: Sequence[Path] = ()) -> Iterator[tuple[Path, Path]]:
        """Open the base's folder, for the checkpoint to write."""
        from recycle_onnx.checkpoint.sources import NamedBase, attached_to

        with (
            progress("converting") as converted,
            attached_to(
                NamedBase(self.base, self.revision, self.adapter), self.out, reference=self.reference, force=self.force,
                keep=keep, note=note, progress=converted,
            ) as places,
        ):  # fmt: skip
            yield places

"""Text that the base writes itself: what a module reads when it is used, and what it is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch

from recycle_onnx.cache import cache_folder
from recycle_onnx.files import temporary_sibling
from recycle_onnx.progress import Progress
from recycle_onnx.script import LIKELIEST, Opening, Script
from recycle_onnx.training.caches import cache_bytes
from recycle_onnx.training.data import Windows
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.side_by_side import side_by_side
from recycle_onnx.training.target_cache import TargetFiles
from recycle_onnx.training.writer import write_windows

AT_ONCE = 128
"""Texts that are written together: on two cores the most tokens per second; more only hold more memory."""
WRITERS = 4
"""Files that are written side by side on a processor, at most, since each has a cache of its own.

A base of 135 M parameters on two cores: two of one thread wrote 690 tokens per second, one of two threads 541.
"""


@dataclass(frozen=True)
class OwnText:
    """Windows [rows, length] that the base writes, kept in the user's cache.

    The texts begin with the `openings`, one after the other, and then from nothing. They lie in files of `at_once`
    windows, so a kill costs one of them, and more text adds to what is there. Every file has a seed of its own.
    While the base writes it says what it would be asked when it reads the text: `targets` keeps that, if there is one.
    """

    model: FullModel
    base_digest: str
    script: Script
    openings: Sequence[Opening]
    rows: int
    length: int
    seed: int
    targets: TargetFiles | None = None
    at_once: int = AT_ONCE
    most_bytes: int | None = None
    """Of the caches of files that are written side by side; a single file may take more."""

    def windows(self, progress: Progress) -> Windows:
        """Return all windows; those written before are taken from the cache.

        Raises:
            RecycleError: the disk is full or not writable; what was written before is kept.
        """
        progress(0, self.rows * self.length, "tokens")
        parts: list[Windows] = []
        for part in side_by_side(self.part, range(0, self.rows, self.at_once), self._writers()):
            parts.append(part)
            progress(sum(part.size for part in parts), self.rows * self.length, "tokens")
        return np.concatenate(parts)

    def part(self, first: int, stopped: Event) -> Windows:
        """Return the windows of the file that begins with window `first`."""
        begun = [self._opening(number) for number in range(first, min(first + self.at_once, self.rows))]
        kind = next(self.model.parameters()).dtype
        how = (self.base_digest, self.script.turns, begun, self.length, self.seed, first, LIKELIEST, kind, 1)
        digest = hashlib.sha256(repr(how).encode()).digest()
        path = cache_folder() / "own-text" / f"{digest.hex()[:32]}.u32"
        if not path.exists():
            seed = int.from_bytes(digest[:4], "little")
            written = write_windows(self.model, begun, self.script.turns, self.length, seed, stopped)
            windows = written.windows.numpy().astype(np.uint32)
            if self.targets:
                self.targets.keep(windows, written.targets)
            _keep(path, windows)
        return np.fromfile(path, np.uint32).reshape(-1, self.length)

    def _writers(self) -> int:
        """Return how many files are written side by side, as their caches have room."""
        count = writers(self.model)
        if self.most_bytes is None:
            return count
        weights = next(self.model.parameters())
        one = cache_bytes(self.model.config, self.at_once, self.length, weights.dtype)
        return max(1, min(count, self.most_bytes // one))

    def _opening(self, number: int) -> Opening:
        """Return the opening of window `number`."""
        starts, behind = self.script.starts, number - len(self.openings)
        return self.openings[number] if behind < 0 else starts[behind % len(starts)]


def writers(model: FullModel) -> int:
    """Return how many files are written side by side: on a processor one a core, elsewhere one."""
    device = next(model.parameters()).device
    return min(WRITERS, torch.get_num_threads()) if device.type == "cpu" else 1


def _keep(path: Path, windows: Windows) -> None:
    with temporary_sibling(path) as work:
        (work / path.name).write_bytes(windows.tobytes())
        (work / path.name).replace(path)

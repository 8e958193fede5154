"""The base's targets on disk, so that no later epoch, and no later training on the same text, runs the base again."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from recycle_onnx.cache import cache_folder, make_room
from recycle_onnx.files import temporary_sibling
from recycle_onnx.progress import Progress
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.storage import write_tensors
from recycle_onnx.training.targets import LIKELIEST, Targets, base_targets

SHARD = 64
"""Windows of a file: what a kill can cost is the one that is being computed, a few seconds of work."""
AT_ONCE = 8
"""Windows that the base reads in one run: larger runs are no faster on a processor, and hold more."""


def folder() -> Path:
    """Return where the targets lie, in the user's cache; it may be removed at any time."""
    return cache_folder() / "targets"


def bytes_a_token(model: FullModel) -> int:
    """Return the bytes that the targets of a token take on disk."""
    states = model.config.hidden_size * len(model.taps) * next(model.parameters()).element_size()
    return states + min(LIKELIEST, model.config.vocab_size) * (2 + 4) + 2 * 4


@dataclass(frozen=True)
class _Shard:
    path: Path
    windows: NDArray[np.uint32]


class TargetFiles:
    """The files of a base's targets, named by all that they depend on.

    That is the base's weights, the taps, the numbers' type and the windows themselves. So they serve any module on
    that text, whatever its draft vocabulary, and a text that grows keeps what was there.
    """

    def __init__(self, model: FullModel, base_digest: str, limit: int) -> None:
        """Identify a base's targets; `limit` bounds the bytes of the whole cache."""
        self._limit = limit
        self._identity = f"{base_digest}|{'|'.join(model.taps)}|{next(model.parameters()).dtype}|{LIKELIEST}|1"

    def of(self, windows: NDArray[np.uint32]) -> list[_Shard]:
        """Name a file for every `SHARD` of these windows [N, S]."""
        parts = (windows[start : start + SHARD] for start in range(0, len(windows), SHARD))
        return [_Shard(folder() / _name(self._identity, part), part) for part in parts]

    def keep(self, windows: NDArray[np.uint32], targets: Targets) -> None:
        """Write the files of these windows, whose targets are known already, as far as the cache has room for them.

        Raises:
            RecycleError: the disk is full or not writable.
        """
        for number, shard in enumerate(self.of(windows)):
            part = targets[SHARD * number : SHARD * (number + 1)]
            if _held() + part.bytes <= self._limit:
                _write(shard.path, part)


class CachedTargets:
    """The targets of windows of text by their number, from files of the cache.

    Beyond `limit` they are computed anew.
    """

    def __init__(self, model: FullModel, base_digest: str, parts: Sequence[NDArray[np.uint32]], limit: int) -> None:
        """Lay out the files; `parts` are windows [N, S] of several kinds of text.

        `limit` bounds the bytes of the whole cache.
        """
        self._model, self._limit = model, limit
        files = TargetFiles(model, base_digest, limit)
        self._shards = [shard for part in parts for shard in files.of(part)]
        self._ends = list(accumulate(len(shard.windows) for shard in self._shards))
        self._window_bytes = bytes_a_token(model) * parts[0].shape[1]
        self._cached = bisect_right(self._ends, limit // self._window_bytes)
        """How many of the files there is room for."""
        self._open: dict[Path, Any] = {}  # files that are mapped: each stays so for the whole training

    @property
    def missing(self) -> int:
        """Windows that the base has to read before the cache is filled."""
        return sum(len(shard.windows) for shard in self._lacking())

    @property
    def uncached(self) -> int:
        """Windows that the cache has no room for."""
        return sum(len(shard.windows) for shard in self._shards[self._cached :])

    def fill(self, progress: Progress) -> None:
        """Compute what is missing, a file at a time; files that are whole stay, whatever happens.

        Raises:
            RecycleError: the disk is full or not writable.
        """
        lacking, read = self._lacking(), 0
        total = sum(shard.windows.size for shard in lacking)
        needed = sum(len(shard.windows) for shard in lacking) * self._window_bytes
        make_room(_files(), needed, self._limit, {shard.path for shard in self._shards})
        for shard in lacking:
            targets = []
            for start in range(0, len(shard.windows), AT_ONCE):
                windows = shard.windows[start : start + AT_ONCE]
                targets.append(self._compute(windows).to(torch.device("cpu")))
                read += windows.size
                progress(read, total, "tokens")
            _write(shard.path, Targets.joined(targets))

    def read(self, numbers: list[int]) -> Targets:
        """Return the targets of the windows with these numbers, in order."""
        windows = [self._read(number) for number in numbers]
        return Targets.joined([window.to(windows[-1].ids.device) for window in windows])

    def _read(self, number: int) -> Targets:
        place = bisect_right(self._ends, number)
        shard, row = self._shards[place], number - (self._ends[place - 1] if place else 0)
        if place >= self._cached:
            return self._compute(shard.windows[row : row + 1])
        if shard.path not in self._open:
            if not _is_whole(shard.path):  # removed since it was filled
                _write(shard.path, self._compute(shard.windows).to(torch.device("cpu")))
            self._open[shard.path] = safe_open(shard.path, framework="pt")
        file = self._open[shard.path]
        return Targets(**{name: file.get_slice(name)[row : row + 1] for name in file.keys()})  # noqa: SIM118

    def _lacking(self) -> list[_Shard]:
        return [shard for shard in self._shards[: self._cached] if not _is_whole(shard.path)]

    def _compute(self, windows: NDArray[np.uint32]) -> Targets:
        parts = torch.split(torch.from_numpy(windows.astype(np.int64)), AT_ONCE)
        return Targets.joined([base_targets(self._model, part) for part in parts])


def spread_files(windows: NDArray[np.uint32], wanted: float) -> NDArray[np.uint32]:
    """Take about `wanted` of these windows [N, S], evenly, in the groups that have a file of targets each.

    So a short training uses what was read for a long one, and the other way round.
    """
    starts = range(0, len(windows), SHARD)
    count = min(len(starts), max(1, round(wanted / SHARD)))
    places = np.linspace(0, len(starts) - 1, count).astype(int)
    return np.concatenate([windows[:0], *(windows[starts[place] : starts[place] + SHARD] for place in places)])


def _name(identity: str, windows: NDArray[np.uint32]) -> str:
    digest = hashlib.sha256(f"{identity}|{windows.shape}|".encode())
    digest.update(np.ascontiguousarray(windows, np.uint32).tobytes())
    return f"{digest.hexdigest()[:32]}.safetensors"


def _is_whole(path: Path) -> bool:
    """Tell whether the file is there as it was written: safetensors knows how long it must be."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _write(path: Path, targets: Targets) -> None:
    with temporary_sibling(path) as work:
        write_tensors(work / path.name, targets.tensors())
        (work / path.name).replace(path)


def _files() -> Iterable[Path]:
    return folder().glob("*.safetensors")


def _held() -> int:
    """Count the bytes of all files in the cache."""
    return sum(path.stat().st_size for path in _files())

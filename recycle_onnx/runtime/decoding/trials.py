"""Trials of what kernels do on this machine: what they read, and how the user's cache keeps their outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.cache import cache_folder, read_cached
from recycle_onnx.contract import CacheType
from recycle_onnx.files import write_json
from recycle_onnx.machine import processor
from recycle_onnx.runtime.decoding.half import Half

VERSION = 3
"""Of the trials: a new one asks again."""
SIZES = (2, 3, 4, 5, 8)
"""Tokens of a run; kernels have tiles of up to four rows and take the rest by ones, twos and threes."""
PASTS = (7, 252)
"""Tokens before: few, and so many that the next ones cross the 256 keys that a product sums up at once."""


class Remembered:
    """The outcome of a trial: from memory, else from the user's cache, else from a trial now."""

    def __init__(self, name: str, answer: bool | None = None) -> None:
        """Have a trial's name in the cache, and an `answer` where one is known without a trial."""
        self._path = cache_folder() / "equal_runs" / f"{name}.json"
        self._key = {"version": VERSION, "processor": processor.identity(), "onnxruntime": ort.__version__}
        self._answer = answer  # None until somebody asks: to try takes a second
        self._lock = threading.Lock()

    def outcome(self, trial: Callable[[], bool]) -> bool:
        """Return the outcome; call `trial` where it is not known."""
        with self._lock:
            if self._answer is None:
                self._answer = self._read()
            if self._answer is None:
                self._answer = trial()
                self._write(self._answer)
            return self._answer

    def _read(self) -> bool | None:
        entry = read_cached(self._path)
        if entry is None:
            return None
        equal = entry.pop("equal", None)
        return equal if entry == self._key and isinstance(equal, bool) else None

    def _write(self, equal: bool) -> None:
        """Keep the outcome in the user's cache; one that cannot be written is no error."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {**self._key, "equal": equal})


def places(half: Half) -> list[tuple[int, int]]:
    """Return where runs of all sizes begin and end, within the text that the half can read."""
    return sorted({place(half, start) for start in PASTS})


def place(half: Half, start: int) -> tuple[int, int]:
    """Return where the longest run behind `start` tokens begins and ends, or one behind fewer where it has no room."""
    end = half.cache.limit - 1  # a text's last token is chosen, and never read
    start = max(1, min(start, end - SIZES[-1]))
    return start, min(start + SIZES[-1], end)


def random_text(half: Half, start: int, end: int) -> tuple[list[int], list[NDArray[Any]]]:
    """Return `end` tokens, and keys and values of the first `start` of them, which are the same in every layer.

    To read a text instead would take longer than all the rest, and other ones in every layer as much memory as it.
    """
    random, spec = np.random.default_rng(0), half.spec
    ids = random.integers(spec.vocab_size, size=end).tolist()
    shape = (spec.num_kv_heads, start, spec.head_dim)
    return ids, [_random(random, shape, dtype) for dtype in spec.cache_types()[:2]] * spec.num_layers


def _random(random: np.random.Generator, shape: tuple[int, ...], dtype: CacheType) -> NDArray[Any]:
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        return random.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    return random.standard_normal(shape, np.float32)

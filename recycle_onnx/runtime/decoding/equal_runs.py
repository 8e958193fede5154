"""Whether runs on several tokens give here, to the bit, what runs on one token give: what earns the word `exact`.

Where layers with a window drop rows, runs have to give what they give with all of them, too: a run on several tokens
drops rows sooner or later than runs on one do. All that is a property of kernels, and so of a machine. It is tried
once, and the answer kept in the user's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.cache import cache_folder, read_cached
from recycle_onnx.contract import CacheType
from recycle_onnx.files import write_json
from recycle_onnx.machine import processor
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.ort.provider_table import CPU

VERSION = 2
"""Of the trial: a new one asks again."""
SIZES = (2, 3, 4, 5, 8)
"""Tokens of a run; kernels have tiles of up to four rows and take the rest by ones, twos and threes."""
PASTS = (7, 252)
"""Tokens before: few, and so many that the next ones cross the 256 keys that a product sums up at once."""


class EqualRuns:
    """The outcome of a trial: from memory, else from the user's cache, else from a trial now."""

    def __init__(self, bundle: Bundle, provider: str, threads: int | None) -> None:
        name = f"{bundle.digest[:32]}-{provider}-{threads or 'default'}.json"
        self._path = cache_folder() / "equal_runs" / name
        self._key = {"version": VERSION, "processor": processor.identity(), "onnxruntime": ort.__version__}
        # None until somebody asks: to try takes a second
        self._answer = None if may_be_equal(bundle.manifest, provider) else False
        self._lock = threading.Lock()

    def known(self, make_decoder: Callable[[], Decoder]) -> bool:
        """Tell whether runs are equal; make a fresh decoder if that has to be tried."""
        with self._lock:
            if self._answer is None:
                self._answer = self._remembered()
            if self._answer is None:
                self._answer = try_runs(make_decoder())
                self._remember(self._answer)
            return self._answer

    def _remembered(self) -> bool | None:
        entry = read_cached(self._path)
        if entry is None:
            return None
        equal = entry.pop("equal", None)
        return equal if entry == self._key and isinstance(equal, bool) else None

    def _remember(self, equal: bool) -> None:
        """Keep the outcome in the user's cache; one that cannot be written is no error."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {**self._key, "equal": equal})


def may_be_equal(manifest: Manifest, provider: str) -> bool:
    """Tell whether a trial is worth its time: for int8 and int4 on the CPU, with float32 between the products.

    Elsewhere kernels are chosen by the number of rows, and by more than a few trials could show.
    """
    return provider == CPU and manifest.quantization is not None and manifest.graphs["full"].float_type == "float32"


def try_runs(decoder: Decoder) -> bool:
    """Let the full model of a fresh `decoder` read tokens one by one and several at a time, behind two pasts.

    Takes the time of some 40 steps; where already runs on two tokens differ, of 10.
    """
    with decoder.exclusive.use():
        end = decoder.full.cache.limit - 1  # a text's last token is chosen, and never read
        starts = sorted({max(1, min(start, end - SIZES[-1])) for start in PASTS})
        equal = all(_equal_behind(decoder.full, start, min(start + SIZES[-1], end)) for start in starts)
        return equal and _equal_without_old_rows(decoder.full, end)


def _equal_behind(full: Half, start: int, end: int) -> bool:
    """Tell whether runs on several tokens at `start` … `end` - 1 give what runs on one give.

    The tokens before are random keys and values: to read a text instead would take longer than all the rest.
    """
    ids, past = _random_text(full, start, end)
    full.restore(ids[:start], past)
    single = _outcome(full, [[token] for token in ids[start:]])
    for size in SIZES:
        full.crop(start)
        several = _outcome(full, [ids[start : start + size]])
        if not all(np.array_equal(one[: len(more)], more) for one, more in zip(single, several, strict=True)):
            return False
    return True


def _equal_without_old_rows(full: Half, end: int) -> bool:
    """Tell whether runs on one token are the same when layers with a window have dropped as few rows as they can.

    A context of up to `end` tokens may be too short for any to be dropped.
    """
    window = full.cache.window
    if window is None or (start := window.step + window.window) + SIZES[-1] > end:
        return True
    ids, past = _random_text(full, start, start + SIZES[-1])
    runs = [[token] for token in ids[start:]]
    full.restore(ids[:start], past)
    whole = _outcome(full, runs)
    shorter = zip(past, full.spec.has_window(), strict=True)
    kept = [rows[:, window.step :] if has_window else rows for rows, has_window in shorter]
    full.restore(ids[:start], kept, dropped=window.step)
    return all(np.array_equal(one, other) for one, other in zip(whole, _outcome(full, runs), strict=True))


def _random_text(full: Half, start: int, end: int) -> tuple[list[int], list[NDArray[Any]]]:
    """Return `end` tokens, and keys and values [K, start, D] of the first ones."""
    random, spec = np.random.default_rng(0), full.spec
    ids = random.integers(spec.vocab_size, size=end).tolist()
    shape = (spec.num_kv_heads, start, spec.head_dim)
    return ids, [_random(random, shape, dtype) for dtype in spec.cache_types()]


def _random(random: np.random.Generator, shape: tuple[int, ...], dtype: CacheType) -> NDArray[Any]:
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        return random.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    return random.standard_normal(shape, np.float32)


def _outcome(full: Half, runs: list[list[int]]) -> list[NDArray[Any]]:
    """Return logits [n, V] of the n tokens that the runs read, and their keys and values [n, K, D] in every layer."""
    count = sum(map(len, runs))
    logits = np.concatenate([full.step(ids, keep=len(ids)).copy() for ids in runs])
    return [logits, *(rows[:, rows.shape[1] - count :].swapaxes(0, 1).copy() for rows in full.rows())]

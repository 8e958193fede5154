"""Whether runs on several tokens give here, to the bit, what runs on one token give: what earns the word `exact`.

Where layers with a window drop rows, runs have to give what they give with all of them, too: a run on several tokens
drops rows sooner or later than runs on one do. All that is a property of kernels, and so of a machine. It is tried
once, and the answer kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.decoding.trials import SIZES, Remembered, places, random_text
from recycle_onnx.runtime.ort.provider_table import CPU


class EqualRuns:
    """Whether runs of a bundle's full model are equal, on a provider with a number of threads."""

    def __init__(self, bundle: Bundle, provider: str, threads: int | None) -> None:
        name = f"{bundle.digest[:32]}-{provider}-{threads or 'default'}"
        self._remembered = Remembered(name, None if may_be_equal(bundle.manifest, provider) else False)

    def known(self, make_decoder: Callable[[], Decoder]) -> bool:
        """Tell whether runs are equal; make a fresh decoder if that has to be tried."""
        return self._remembered.outcome(lambda: try_runs(make_decoder()))


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
        equal = all(_equal_behind(decoder.full, start, end) for start, end in places(decoder.full))
        return equal and _equal_without_old_rows(decoder.full)


def _equal_behind(full: Half, start: int, end: int) -> bool:
    """Tell whether runs on several tokens at `start` … `end` - 1 give what runs on one give."""
    ids, past = random_text(full, start, end)
    full.restore(ids[:start], past)
    single = _outcome(full, [[token] for token in ids[start:]])
    for size in SIZES:
        full.crop(start)
        several = _outcome(full, [ids[start : start + size]])
        if not all(np.array_equal(one[: len(more)], more) for one, more in zip(single, several, strict=True)):
            return False
    return True


def _equal_without_old_rows(full: Half) -> bool:
    """Tell whether runs on one token are the same when layers with a window have dropped as few rows as they can.

    The context may be too short for any to be dropped.
    """
    window = full.cache.window
    if window is None or (start := window.step + window.window) + SIZES[-1] >= full.cache.limit:
        return True
    ids, past = random_text(full, start, start + SIZES[-1])
    runs = [[token] for token in ids[start:]]
    full.restore(ids[:start], past)
    whole = _outcome(full, runs)
    shorter = zip(past, full.spec.has_window(), strict=True)
    kept = [rows[:, window.step :] if has_window else rows for rows, has_window in shorter]
    full.restore(ids[:start], kept, dropped=window.step)
    return all(np.array_equal(one, other) for one, other in zip(whole, _outcome(full, runs), strict=True))


def _outcome(full: Half, runs: list[list[int]]) -> list[NDArray[Any]]:
    """Return logits [n, V] of the n tokens that the runs read, and their keys and values [n, K, D] in every layer."""
    count = sum(map(len, runs))
    logits = np.concatenate([full.step(ids, keep=len(ids)).copy() for ids in runs])
    return [logits, *(rows[:, rows.shape[1] - count :].swapaxes(0, 1).copy() for rows in full.rows())]

"""Whether runs on several tokens give here, to the bit, what runs on one token give: what earns the word `exact`.

That is a property of kernels, and so of a machine. It is tried once, and the answer kept in the user's cache. Whether
layers with a window may drop rows is asked apart (`equal_rows.py`).
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
        return all(_equal_behind(decoder.full, start, end) for start, end in places(decoder.full))


def _equal_behind(full: Half, start: int, end: int) -> bool:
    """Tell whether runs on several tokens at `start` … `end` - 1 give what runs on one give."""
    ids, past = random_text(full, start, end)
    full.restore(ids[:start], past)
    single = outcome(full, [[token] for token in ids[start:]])
    for size in SIZES:
        full.crop(start)
        several = outcome(full, [ids[start : start + size]])
        if not all(np.array_equal(one[: len(more)], more) for one, more in zip(single, several, strict=True)):
            return False
    return True


def outcome(full: Half, runs: list[list[int]]) -> list[NDArray[Any]]:
    """Return logits [n, V] of the n tokens that the runs read, and their keys and values [n, K, D] in every layer."""
    count = sum(map(len, runs))
    logits = np.concatenate([full.step(ids, keep=len(ids)).copy() for ids in runs])
    return [logits, *(rows[:, rows.shape[1] - count :].swapaxes(0, 1).copy() for rows in full.rows())]

"""Whether the full model gives here, to the bit, the same without the rows that layers with a window no longer need.

A run on several tokens drops rows sooner or later than runs on one do. So texts are `exact` only where that changes no
bit, and elsewhere all rows are kept. Nobody asks before a text is so long that rows could be dropped. It is tried once,
and the answer kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recycle_onnx.bundle import Bundle
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.equal_runs import EqualRuns, may_be_equal, outcome
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.decoding.trials import SIZES, Remembered, random_text


class EqualRows:
    """Whether a bundle's full model may drop rows, on a provider with a number of threads."""

    def __init__(self, bundle: Bundle, provider: str, threads: int | None, runs: EqualRuns) -> None:
        """Have `runs` say whether there is a word `exact` to lose."""
        name = f"{bundle.digest[:32]}-{provider}-{threads or 'default'}-windows"
        self._remembered = Remembered(name, None if may_be_equal(bundle.manifest, provider) else True)
        self._runs = runs

    def may_drop(self, make_decoder: Callable[[], Decoder]) -> bool:
        """Tell whether rows may be dropped; make a fresh decoder for each trial that this needs."""
        return self._remembered.outcome(lambda: not self._runs.known(make_decoder) or try_rows(make_decoder()))


def try_rows(decoder: Decoder) -> bool:
    """Let the full model of a fresh `decoder` read tokens behind a past with all rows, and without the oldest ones.

    As few are dropped as can be. Takes the time of 16 steps behind so many tokens, and memory for one layer's rows.
    """
    with decoder.exclusive.use():
        return _equal_without_old_rows(decoder.full)


def _equal_without_old_rows(full: Half) -> bool:
    """Tell whether runs on one token are the same; true where the context is too short for rows to be dropped."""
    window = full.cache.window
    if window is None or (start := window.step + window.window) + SIZES[-1] >= full.cache.limit:
        return True
    ids, past = random_text(full, start, start + SIZES[-1])
    runs = [[token] for token in ids[start:]]
    full.cache.share_buffers(len(ids))
    full.restore(ids[:start], past)
    whole = outcome(full, runs)
    shorter = zip(past, full.spec.has_window(), strict=True)
    kept = [rows[:, window.step :] if has_window else rows for rows, has_window in shorter]
    full.restore(ids[:start], kept, dropped=window.step)
    return all(np.array_equal(one, other) for one, other in zip(whole, outcome(full, runs), strict=True))

"""How large keys and values get, channel by channel, on the texts that int4 is calibrated on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import Kind
from recycle_onnx.export.calibrated.texts import WINDOW, some_committed
from recycle_onnx.export.int8_cache.attention import CacheScales, orthogonal
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.ort.sessions import open_mapped

WINDOWS = 32
"""Of text that is read."""
ROOM = 1.25
"""How much larger than the largest that was seen a value may be before it is cut off. Cutting off costs more than wider
steps do: with half of the largest value perplexity of a base of 135 M parameters rose by a fifth."""
LARGEST = 127
"""Steps from 0 to the largest value."""
TINY = 1e-6
"""Of a channel that is always 0."""
Floats = NDArray[np.float32]


def cache_scales(bundle: Bundle, threads: int | None, report: Progress) -> dict[Kind, list[CacheScales]]:
    """Return the scales of every layer of a bundle with caches of floats, by half; takes some seconds."""
    manifest = bundle.manifest
    halves = {
        kind: Half(open_mapped(bundle, kind, "cpu", threads), manifest.graphs[kind], manifest.context_length)
        for kind in manifest.kinds
    }
    largest: dict[Kind, dict[int, Floats]] = {kind: {} for kind in halves}
    windows = some_committed(bundle, min(WINDOW, manifest.context_length - 1), WINDOWS)
    turn = orthogonal(manifest.graphs["full"].head_dim)
    for number, ids in enumerate(windows):
        report(number, len(windows), "calibrating keys and values")
        for kind, half in _read(halves, ids.tolist()):
            for place, rows in enumerate(half.rows()):
                sizes = np.abs(rows @ turn if place % 2 == 0 else rows)
                seen = largest[kind].setdefault(place, sizes.max(axis=1))
                np.maximum(seen, sizes.max(axis=1), out=seen)
    return {
        kind: [_scales(of[2 * layer], of[2 * layer + 1]) for layer in range(len(of) // 2)]
        for kind, of in largest.items()
    }


def _read(halves: dict[Kind, Half], ids: list[int]) -> Iterator[tuple[Kind, Half]]:
    """Let both halves read a text, and yield each one behind it."""
    full = halves["full"]
    states = np.empty((len(ids), full.spec.state_size), np.float32)
    full.crop(0)
    full.read(ids, None, states)
    yield "full", full
    if module := halves.get("recycler"):
        module.crop(0)
        module.read(ids[1:], states[:-1], np.empty_like(states[:-1]))
        yield "recycler", module


def _scales(keys: Floats, values: Floats) -> CacheScales:
    return CacheScales(*(np.maximum(ROOM * largest / LARGEST, TINY).astype(np.float32) for largest in (keys, values)))

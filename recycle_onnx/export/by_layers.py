"""Texts through a float32 bundle whose weights are never in memory together: all texts at once, a layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import LOGITS
from recycle_onnx.evaluation.scoring import Score, scored
from recycle_onnx.export.calibrated.segments import Floats, beginning, cut
from recycle_onnx.export.lazy import load_lazily
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.ort.sessions import open_mapped


def scores(bundle: Bundle, texts: Sequence[list[int]], threads: int | None) -> Iterator[tuple[Score, Floats]]:
    """Score texts as `Scorer` does; yield each one's score, and the full model's logits [S, V].

    (Of 1.1 B parameters this takes 0.7 GB. A session keeps every page of its mapped file that it has read: 4.2 GB.)
    """
    module = _Module(bundle, threads) if "recycler" in bundle.manifest.graphs else None
    for ids, (logits, hidden) in zip(texts, _read(bundle, texts, threads), strict=True):
        if module is None:
            yield scored(ids, logits, None, None), logits
        else:
            yield scored(ids, logits, module.logits(ids, hidden), module.draft_ids), logits


def _read(bundle: Bundle, texts: Sequence[list[int]], threads: int | None) -> Iterator[tuple[Floats, Floats]]:
    """Yield logits [S, V] and hidden states [S, state_size] of each text, without its last token."""
    spec = bundle.manifest.graphs["full"]
    taps = spec.state_outputs()
    *layers, head = cut(load_lazily(bundle.graph("full"), {}), keep=taps)
    states = [beginning(spec, np.array([ids[:-1]], np.int64)) for ids in texts]
    for layer in layers:
        matrices = layer.load()
        states = [layer.behind(state, layer.run(state, matrices, threads)) for state in states]
        layer.close()
    matrices = head.load()
    for state in states:
        made = {**state, **head.run(state, matrices, threads)}  # a head of several states fuses them in the last piece
        yield made[LOGITS][0], np.concatenate([made[tap][0] for tap in taps], axis=-1)
    head.close()


class _Module:
    """The recyclable module, which reads what the full model gave."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        manifest = bundle.manifest
        session = open_mapped(bundle, "recycler", "cpu", threads)
        self._half = Half(session, manifest.graphs["recycler"], manifest.context_length)
        draft = manifest.draft_vocabulary
        self.draft_ids = None if draft is None else np.array(draft, np.int64)

    def logits(self, ids: list[int], hidden: Floats) -> Floats:
        """Return logits [S - 2, Vd] for the tokens from the third on; `hidden` [S - 1, state_size] are the base's."""
        self._half.crop(0)
        rows = np.ascontiguousarray(hidden[:-1])
        states = np.empty((len(rows), self._half.spec.state_size), rows.dtype)
        return self._half.read(ids[1:-1], rows, states, keep=len(rows))

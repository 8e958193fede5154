"""Caches of texts that were read before: a request that begins like one of them goes on from there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from recycle_onnx.runtime.decoding.decoder import Decoder, common_prefix
from recycle_onnx.runtime.decoding.strategies import NEEDING_MODULE
from recycle_onnx.runtime.model import RecycleModel

WORTH = 0.5
"""A cache serves a text that has at least this share of it in common; else its own text may still go on."""


@dataclass
class PrefixCaches:
    """A pool of idle decoders, the one used last at the end, at most `most` of them. Safe for any thread."""

    model: RecycleModel
    most: int
    _idle: list[Decoder] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def lend(self, prompt: list[int], strategy: str) -> Iterator[Decoder]:
        """Lend a decoder that has read as much of `prompt` as any, for one generation; then keep it for the next one.

        After an error it is not: nobody knows what it has read.
        """
        with_module = strategy in ("auto", *NEEDING_MODULE) and "recycler" in self.model.bundle.manifest.graphs
        decoder = self._take(prompt, with_module) or self.model.decoder(strategy)
        yield decoder
        with self._lock:
            self._idle = [*self._idle, decoder][max(0, len(self._idle) + 1 - self.most) :]

    def _take(self, prompt: list[int], with_module: bool) -> Decoder | None:
        with self._lock:
            same = [common_prefix(one.tokens.full, prompt) for one in self._idle]
            fitting = [
                index
                for index, one in enumerate(self._idle)
                if (one.recycler is not None) == with_module and same[index] >= WORTH * len(one.tokens.full)
            ]
            return self._idle.pop(max(fitting, key=lambda index: same[index])) if fitting else None

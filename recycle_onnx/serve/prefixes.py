"""Caches of texts that were read before: a request that begins like one of them goes on from there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from recycle_onnx.runtime.decoding.decoder import Decoder, common_prefix
from recycle_onnx.runtime.decoding.strategies import Plan
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.prompt_saver import PromptSaver

WORTH = 0.5
"""A cache serves a text that has at least this share of it in common, and need not read more than the rest of that
again; else its own text may still go on."""


def nobody(restored: int) -> None:
    """Ignore how many tokens came from files."""


@dataclass
class PrefixCaches:
    """A pool of idle decoders, the one used last at the end, at most `most` of them. Safe for any thread.

    With a `saver` they are also saved, and what files know of a prompt is restored before the rest is read; `watch` is
    told of how many tokens.
    """

    model: Model
    most: int
    saver: PromptSaver | None = None
    watch: Callable[[int], object] = nobody
    _idle: list[Decoder] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def lend(self, prompt: list[int], strategy: str) -> Iterator[Decoder]:
        """Lend a decoder that has read as much of `prompt` as any, for one generation; then keep it for the next one.

        After an error it is not: nobody knows what it has read.
        """
        with_module = Plan(strategy, module_trained=self.model.module_trained).needs_module
        decoder = self._take(prompt, with_module) or self._make(with_module)
        if self.saver is not None:
            self.saver.withdraw(decoder)
        yield decoder
        if self.saver is not None:
            self.saver.offer(decoder)  # before anybody can take it again
        with self._lock:
            # The one that was used longest ago goes; where `most` is 0, this one.
            self._idle = [*self._idle, decoder][max(0, len(self._idle) + 1 - self.most) :]

    def _take(self, prompt: list[int], with_module: bool) -> Decoder | None:
        with self._lock:
            same = [_same(one, prompt) for one in self._idle]
            fitting = [
                index
                for index, one in enumerate(self._idle)
                if (one.recycler is not None) == with_module and same[index] >= WORTH * len(one.tokens.full)
            ]
            return self._idle.pop(max(fitting, key=lambda index: same[index])) if fitting else None

    def _make(self, with_module: bool) -> Decoder:
        decoder = self.model.decoder("auto" if with_module else "full")
        if self.saver is not None:
            decoder.keep_all_rows()  # a file has those of every layer, for texts that go on from there
            decoder.recall = self._restore
        return decoder

    def _restore(self, decoder: Decoder, prompt: list[int]) -> int:
        assert self.saver is not None
        restored = self.saver.files.restore(decoder, prompt)
        self.watch(restored)
        return restored


def _same(decoder: Decoder, prompt: list[int]) -> int:
    """Count the tokens that a prompt has in common with a text; 0 where too many of them had to be read again."""
    same = common_prefix(decoder.tokens.full, prompt)
    return same if decoder.reusable(prompt) >= WORTH * same else 0

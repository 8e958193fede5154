"""The text of a training: what was given, what the base writes itself, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.progress import Progress
from recycle_onnx.script import Opening, Script
from recycle_onnx.training.data import Corpus, Windows, cut, split
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.own_text import OwnText
from recycle_onnx.training.target_cache import TargetFiles
from recycle_onnx.training.tokens import tokenise

HELD_OUT_WINDOWS = 64
"""Windows that are measured on: with 256 tokens each, acceptance is known to about half a point."""


@dataclass(frozen=True)
class Reader:
    """A reader of a training's documents as windows of tokens; it has the base write where that is asked for."""

    checkpoint: Checkpoint
    model: RecycleGPT
    options: TrainingOptions
    notice: Callable[[str], None]
    stage: Callable[[str], AbstractContextManager[Progress]]
    write: bool
    """Without it windows of zeros stand for what the base would write."""

    def corpus(self, data: list[Path], held_out: list[Path]) -> Corpus:
        """Read the windows to train on and those to measure.

        Raises:
            InputError: no text, or too little of it.
        """
        name = ", ".join(map(str, data)) or "the base's own text"
        options = self.options
        parts = [] if options.regenerate or not data else [self._documents(data)]
        if options.own_tokens or options.regenerate:
            parts.insert(0, self._own(data if options.regenerate else [], options.own_tokens or 0))
        measured = None
        if held_out:
            measured = self._own(held_out, 0) if options.regenerate else self._documents(held_out)
        corpus = split(name, parts, measured, most=HELD_OUT_WINDOWS)
        wanted = None if options.joint else options.windows_of_budget()
        return corpus if wanted is None else replace(corpus, train=_spread(corpus.train, wanted))

    def _documents(self, paths: Sequence[Path]) -> Windows:
        base = self.checkpoint
        tokens = tokenise(base.base_folder, paths, base.base.vocab_size, self.options.field, self.notice)
        return cut(tokens, self.options.sequence_length)

    def _own(self, paths: Sequence[Path], tokens: int) -> Windows:
        options = self.options
        script = Script.of(self.checkpoint.base_folder, options.temperature)
        openings: list[Opening] = script.openings(paths, options.field) if paths else []
        length = options.sequence_length
        rows = max(len(openings), -(-tokens // length))
        if not self.write:
            return np.zeros((rows, length), np.uint32)
        model, digest = self.model.full, self.checkpoint.base_weights.digest()
        targets = None if options.joint else TargetFiles(model, digest, int(options.cache_gb * 1e9))
        with self.stage("the base writes") as progress:
            return OwnText(model, digest, script, openings, rows, length, options.seed, targets).windows(progress)


def _spread(parts: tuple[Windows, ...], wanted: int) -> tuple[Windows, ...]:
    """Choose no more than `wanted` windows, evenly over the text: a short training need not read all of it."""
    total = sum(map(len, parts))
    if total <= wanted:
        return parts
    shares = [min(len(part), max(1, wanted * len(part) // total)) for part in parts]
    places = [np.linspace(0, len(part) - 1, share).astype(int) for part, share in zip(parts, shares, strict=True)]
    return tuple(part[chosen] for part, chosen in zip(parts, places, strict=True))

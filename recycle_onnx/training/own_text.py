"""Text that the base writes itself: what a module reads when it is used, and what it is measured on."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recycle_onnx.cache import cache_folder
from recycle_onnx.files import temporary_sibling
from recycle_onnx.progress import Progress
from recycle_onnx.script import Opening, Script, Turn
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.data import Windows
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.precision import computing, precision_of

LIKELIEST = 50
"""Tokens that a sample is drawn from. A small model's unlikelier ones derail a text, and the rest of it with them."""
AT_ONCE = 128
"""Texts that are written together: on two cores the most tokens per second; more only hold more memory."""


@dataclass(frozen=True)
class OwnText:
    """Windows [rows, length] that the base writes, kept in the user's cache.

    The texts begin with the `openings`, one after the other, and then from nothing. They lie in files of `AT_ONCE`
    windows, so a kill costs one of them, and more text adds to what is there. Every file has a seed of its own.
    """

    model: FullModel
    base_digest: str
    script: Script
    openings: Sequence[Opening]
    rows: int
    length: int
    seed: int

    def windows(self, progress: Progress) -> Windows:
        """All of them; those written before are taken from the cache.

        Raises:
            RecycleError: the disk is full or not writable; what was written before is kept.
        """
        parts = []
        for first in range(0, self.rows, AT_ONCE):
            progress(first * self.length, self.rows * self.length, "tokens")
            parts.append(self.part(first))
        progress(self.rows * self.length, self.rows * self.length, "tokens")
        return np.concatenate(parts)

    def part(self, first: int) -> Windows:
        """The windows of the file that begins with window `first`."""
        begun = [*self.openings, *[self.script.start] * (self.rows - len(self.openings))][first : first + AT_ONCE]
        kind = next(self.model.parameters()).dtype
        how = (self.base_digest, self.script.turns, begun, self.length, self.seed, first, LIKELIEST, kind, 1)
        digest = hashlib.sha256(repr(how).encode()).digest()
        path = cache_folder() / "own-text" / f"{digest.hex()[:32]}.u32"
        if not path.exists():
            seed = int.from_bytes(digest[:4], "little")
            _keep(path, write_windows(self.model, begun, self.script.turns, self.length, seed))
        return np.fromfile(path, np.uint32).reshape(-1, self.length)


def _keep(path: Path, windows: Tensor) -> None:
    with temporary_sibling(path) as work:
        (work / path.name).write_bytes(windows.numpy().astype(np.uint32).tobytes())
        (work / path.name).replace(path)


@dataclass
class _Row:
    """A text that is being written: tokens that stand before the next sampled one, and whose turn it is."""

    waiting: deque[int]
    turn: int


@torch.no_grad()
def write_windows(
    model: FullModel, openings: Sequence[Opening], turns: Sequence[Turn], length: int, seed: int
) -> Tensor:
    """Windows of token ids [len(openings), length], each text begun by its opening.

    All rows advance together, one token a run, so an opening longer than the shortest one is read a token at a time.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    common = min(length, *(len(opening.ids) for opening in openings))
    rows = [_Row(deque(opening.ids[common:]), opening.turn) for opening in openings]
    windows = torch.empty(len(rows), length, dtype=torch.long)
    windows[:, :common] = torch.tensor([opening.ids[:common] for opening in openings])
    cache = new_cache(model.config, model.config.num_layers, len(rows), next(model.parameters()).dtype, device)
    for place in range(common, length):
        start = 0 if place == common else place - 1
        with computing(model, device, precision_of(model)):
            hidden, _ = model.hidden(windows[:, start:place].to(device), cache)
            logits = model.logits(hidden[:, -1]).float().cpu()
        temperatures = torch.tensor([_temperature(number, turns[row.turn]) for number, row in enumerate(rows)])
        sampled = _sample(logits, temperatures, generator)
        windows[:, place] = torch.tensor([_next(row, token, turns) for row, token in zip(rows, sampled, strict=True)])
    return windows


def _sample(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> list[int]:
    """A token of each row of `logits` [B, V], among the likeliest; the best one at temperature 0."""
    values, ids = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    probabilities = (values / temperatures.clamp(min=1e-4)[:, None]).softmax(-1)
    chosen: list[int] = ids.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0].tolist()
    return chosen


def _temperature(number: int, turn: Turn) -> float:
    return turn.temperatures[number % len(turn.temperatures)]


def _next(row: _Row, sampled: int, turns: Sequence[Turn]) -> int:
    """The token that follows in this row: a waiting one before the sampled one. The end of a turn begins the next."""
    if row.waiting:
        return row.waiting.popleft()
    turn = turns[row.turn]
    if sampled in turn.ends:
        row.waiting.extend(turn.then)
        row.turn = (row.turn + 1) % len(turns)
    return sampled

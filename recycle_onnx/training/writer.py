"""How a base writes: many texts together, a token of each in one run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recycle_onnx.script import LIKELIEST, Opening, Turn, Writing
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.precision import computing, precision_of
from recycle_onnx.training.targets import Targets, targets_of, targets_of_last


class Written(NamedTuple):
    """The result of writing: windows of token ids [N, S], and what the base said on the way, its targets for them."""

    windows: Tensor
    targets: Targets


@torch.no_grad()
def write_windows(
    model: FullModel,
    openings: Sequence[Opening],
    turns: Sequence[Turn],
    length: int,
    seed: int,
    stopped: Event | None = None,
) -> Written:
    """Write windows of token ids [len(openings), length], each text begun by its opening.

    All rows advance together, one token a run, so an opening longer than the shortest one is read a token at a time.

    Raises:
        CancelledError: `stopped` was set meanwhile.
    """
    generator = torch.Generator().manual_seed(seed)
    common = min(length, *(len(opening.ids) for opening in openings))
    texts = [Writing(turns, n, deque(opening.ids[common:]), opening.turn) for n, opening in enumerate(openings)]
    windows = torch.zeros(len(texts), length, dtype=torch.long)
    windows[:, :common] = torch.tensor([opening.ids[:common] for opening in openings])
    base = _Base(model, len(texts))
    if common > 1:
        base.read(windows[:, : common - 1], windows[:, 1:common])
    for place in range(common, length + 1):
        if stopped is not None and stopped.is_set():
            raise CancelledError

        def go_on(logits: Tensor, place: int = place) -> Tensor:
            if place < length:  # what follows a window's last token is not written
                temperatures = torch.tensor([text.temperature for text in texts])
                sampled = zip(texts, _sample(logits.cpu(), temperatures, generator), strict=True)
                ids = [text.waiting.popleft() if text.waiting else text.say(token) for text, token in sampled]
                windows[:, place] = torch.tensor(ids)
            return windows[:, min(place, length - 1)]

        base.continue_with(windows[:, place - 1 : place], go_on)
    targets = Targets.joined(base.said, dim=1)
    targets.nats[:, -1] = 0
    return Written(windows, targets)


class _Base:
    """A base with a cache for `rows` texts, which keeps what it said of each token that it read."""

    def __init__(self, model: FullModel, rows: int) -> None:
        weights = next(model.parameters())
        self._model, self._device = model, weights.device
        self._cache = new_cache(model.config, model.config.num_layers, rows, weights.dtype, weights.device)
        self.said: list[Targets] = []
        """Behind each other they are the targets of all tokens so far."""

    def read(self, ids: Tensor, following: Tensor) -> None:
        """Read tokens [N, S] whose successors are known."""
        with self._computing():
            hidden, states = self._model.hidden(ids.to(self._device), self._cache)
            said = targets_of(self._model, hidden, states, following.to(self._device))
        self.said.append(said.to(torch.device("cpu")))

    def continue_with(self, ids: Tensor, go_on: Callable[[Tensor], Tensor]) -> None:
        """Read tokens [N, 1]; `go_on` gives their successors [N] for the logits [N, V]."""
        with self._computing():
            hidden, states = self._model.hidden(ids.to(self._device), self._cache)
            logits = self._model.logits(hidden[:, -1]).float()
        said = targets_of_last(self._model, logits, states, go_on(logits).to(self._device))
        self.said.append(said.to(torch.device("cpu")))

    def _computing(self) -> AbstractContextManager[Any]:
        return computing(self._model, self._device, precision_of(self._model))


def _sample(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> list[int]:
    """Draw a token of each row of `logits` [B, V], among the likeliest; the best one at temperature 0."""
    values, ids = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    probabilities = (values / temperatures.clamp(min=1e-4)[:, None]).softmax(-1)
    chosen: list[int] = ids.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0].tolist()
    return chosen

"""One text as a strategy decodes it: choices until somebody cancels, and what they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recycle_onnx.errors import OvertakenError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.decoding import strategies
from recycle_onnx.runtime.decoding.auto import AutoProposer
from recycle_onnx.runtime.decoding.decoder import Decoder, Work
from recycle_onnx.runtime.decoding.proposals import Proposer
from recycle_onnx.runtime.decoding.sampling import Chooser


class _Cancelled(Exception):  # noqa: N818 -- no error
    """An exception that ends the reading of a prompt."""


@dataclass
class _Watch:
    """A watcher that reports how far the prompt is read, and ends the reading once the run is cancelled.

    An object of its own: the decoder keeps it, and would keep the run and with it itself alive.
    """

    progress: Progress
    cancelled: bool = False

    def __call__(self, read: int, total: int) -> None:
        if self.cancelled:
            raise _Cancelled
        self.progress(read, total, "reading the prompt")


class Run:
    """An iterator over the choices of one text, which owns the caches and counts what the choices took.

    `work` and `counts` are what it took so far. `started`, `first` and `last` are the times when it was made and when
    the first and the latest choice came, in seconds of `time.perf_counter`.
    """

    def __init__(
        self,
        decoder: Decoder,
        plan: strategies.Plan,
        prompt: list[int],
        sampling: Chooser,
        limit: int,
        *,
        proposer: Proposer | None = None,
        progress: Progress = silent,
    ) -> None:
        """Prepare the decoding of one text; nothing runs before the first token is asked for.

        `limit` is the most tokens to choose; `proposer` takes the place of the strategy's own.

        `progress` is told of every chunk of the prompt: tokens read, of how many.
        """
        self.decoder, self.plan, self.prompt, self.limit = decoder, plan, prompt, limit
        self.counts, self.work = strategies.Counts(), Work()
        self.started = self.first = self.last = time.perf_counter()
        self._sampling, self._proposer, self._watch = sampling, proposer, _Watch(progress)
        self._choices: Iterator[strategies.ChosenToken] | None = (
            None  # begun with the first choice: it may index the prompt
        )

    def __iter__(self) -> Iterator[strategies.ChosenToken]:
        return self

    def __next__(self) -> strategies.ChosenToken:
        """Decode the next token.

        Raises:
            StopIteration: the text is at its limit, or somebody has cancelled.
            OvertakenError: the caches have read another text since.
        """
        if self.cancelled:
            raise StopIteration
        begins = self._choices is None
        choices = self._choices = self._choices or self._begin()
        if not begins:
            self._check_own_text()
        try:
            choice = next(choices)
        except _Cancelled:
            raise StopIteration from None
        self.work = self.decoder.work
        # Cancelled during the step, by another thread: nobody wants its token any more.
        if self.cancelled:
            raise StopIteration
        self.last = time.perf_counter()
        if begins:
            self.first = self.last
        return choice

    def cancel(self) -> None:
        """End after the step in progress; from any thread, at any time."""
        self._watch.cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled."""
        return self._watch.cancelled

    @property
    def decisions(self) -> dict[str, Any] | None:
        """What `auto` decided, and why; None where it is not at work."""
        return self._proposer.report() if isinstance(self._proposer, AutoProposer) else None

    def _begin(self) -> Iterator[strategies.ChosenToken]:
        text = self.plan, self.decoder, self.prompt, self._sampling
        if self._proposer is None:
            self._proposer = strategies.make_proposer(*text)
        return strategies.run(*text, self.limit, self.counts, self._proposer, self._watch)

    def _check_own_text(self) -> None:
        """Refuse to go on where the decoder has begun another text: each text has a `Work` of its own."""
        if self.work is not self.decoder.work:
            raise OvertakenError(
                "the caches of this generation have read another text since; it cannot go on: "
                "give each generation its own decoder, or end one before the next one begins"
            )

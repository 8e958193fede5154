"""One generation: tokens as they become final, when to stop, and what it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from weakref import proxy

from tokenizers import Tokenizer

from recycle_onnx.contract import Kind
from recycle_onnx.errors import OvertakenError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.decoding import strategies
from recycle_onnx.runtime.decoding.decoder import Decoder, Work
from recycle_onnx.runtime.decoding.exclusive import BusyError
from recycle_onnx.runtime.decoding.logprobs import logprobs
from recycle_onnx.runtime.decoding.proposals import Proposer
from recycle_onnx.runtime.decoding.sampling import Chooser
from recycle_onnx.runtime.ort.native import at_work
from recycle_onnx.runtime.text import StopStrings, TextStream

Lossless = Literal["exact", "within_rounding", "no"]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Token:
    """A new token: its id, the text that became certain with it, and whether it is a recycled one.

    Where they were asked for: its log-probability (natural logarithm, before processors and temperature; None where the
    module's draft vocabulary lacks it) and those of the most likely tokens, best first, `logprobs_of` the half that
    had the last word: the full model, or under `alternate` the module for recycled tokens.
    """

    id: int
    text: str
    recycled: bool
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    logprobs_of: Kind | None = None


@dataclass(frozen=True)
class Stats:
    """Counts of one generation, and seconds of wall time.

    `reused_tokens` are those of the prompt that the caches held already. `proposed` and `accepted` count recycled
    tokens; `acceptance_rate` is None where nothing was verified. `time_to_first_token_s` includes reading the prompt,
    `prefill_s` is that of both halves, `decode_s` all but `prefill_s`; `tokens_per_second` is that of the tokens after
    the first.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    full_runs: int
    recycle_runs: int
    proposed: int
    accepted: int
    acceptance_rate: float | None
    tokens_per_second: float
    time_to_first_token_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Result:
    """New text and tokens, and how they came about.

    `lossless` says how the tokens relate to those of `full`: `exact` (identical), `within_rounding`, or `no`.
    `finish_reason` is `length` as long as the text goes on, too; `error` where an exception ended it.
    `logprobs` has an entry for each token where they were asked for (`logprob`, `top_logprobs` and `logprobs_of` of the
    `Token`). `decisions` is what `auto` chose how often, and the step costs and acceptance that made it do so.
    """

    text: str
    tokens: list[int]
    recycled: list[bool]
    strategy: str
    lossless: Lossless
    finish_reason: FinishReason
    stats: Stats
    decisions: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


class _Cancelled(Exception):  # noqa: N818 -- no error
    """Ends the reading of a prompt."""


@dataclass
class Generation:
    """An iterator over new tokens, for `for` and for `async for`; once it is exhausted, `result` holds the whole.

    One thread at a time may use it; `cancel` is for any thread. Under `async for` the steps run in asyncio's worker
    threads, and to cancel the task is to cancel the generation.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    prompt: list[int]
    plan: strategies.Plan
    lossless: Lossless
    sampling: Chooser
    limit: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    logprobs: int | None = None
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    proposer: Proposer | None = None
    """Who proposes instead of the strategy's own proposer; to be set before the first token."""
    progress: Progress = silent
    """Told of every chunk of the prompt: tokens read, of how many."""

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._first = self._last = self._started
        self._counts, self._work = strategies.Counts(), Work()
        self._text: Work | None = None  # the caches are this generation's as long as their work is this one
        self._cancelled = False
        # A generator that held its generation, and the caches with it, would be a cycle: freed some time later.
        self._tokens = Generation._generate(proxy(self))

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        try:
            with self.decoder.exclusive.use(), at_work():
                return next(self._tokens)
        except (StopIteration, BusyError):
            raise
        except BaseException as error:  # nothing goes on after it
            self._end_early("error" if isinstance(error, Exception) else "cancelled")
            raise

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        step = asyncio.get_running_loop().run_in_executor(None, next, self, None)
        try:
            token = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.cancel()
            while not step.done():  # not longer than a step; then the caches are free
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([step])
            step.exception()  # whatever it was, nobody waits for it any more
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    def cancel(self) -> None:
        """End after the step in progress, with finish reason `cancelled`; from any thread, at any time."""
        self._cancelled = True
        self._end_early("cancelled")

    def _end_early(self, reason: FinishReason) -> None:
        """Say why there will be no more tokens, unless the text was over."""
        if self.finish_reason == "length" and len(self.tokens) < self.limit:
            self.finish_reason = reason

    def _choices(self) -> Iterator[strategies.Choice]:
        """What the strategy chooses, until somebody cancels."""
        choices = strategies.run(
            self.plan, self.decoder, self.prompt, self.sampling, self.limit, self._counts, self.proposer
        )
        try:
            while not self._cancelled:
                choice = self._step(choices)
                self._work = self._text = self.decoder.work
                if choice is None:
                    return
                if not self._cancelled:
                    yield choice
        except _Cancelled:
            pass
        self._end_early("cancelled")

    def _step(self, choices: Iterator[strategies.Choice]) -> strategies.Choice | None:
        if self._text is not None and self._text is not self.decoder.work:
            raise OvertakenError(
                "the caches of this generation have read another text since; it cannot go on: "
                "give each generation its own decoder, or end one before the next one begins"
            )
        self.decoder.watch = self._watch
        try:
            return next(choices, None)
        finally:
            self.decoder.watch = None

    def _watch(self, read: int, total: int) -> None:
        if self._cancelled:
            raise _Cancelled
        self.progress(read, total, "reading the prompt")

    def _generate(self) -> Iterator[Token]:
        text, stops = TextStream(self.tokenizer, self.prompt), StopStrings(self.stop_strings)
        for choice in Generation._choices(self):  # whatever `self` is: a proxy
            self._last = time.perf_counter()
            if not self.tokens:
                self._first = self._last
            at_stop_id = choice.id in self.stop_ids
            new = "" if at_stop_id else stops.push(text.push(choice.id))
            ends = at_stop_id or stops.found
            if ends or len(self.tokens) + 1 == self.limit:
                self.finish_reason = "stop" if ends else "length"
            if at_stop_id or (len(self.tokens) + 1 == self.limit and not stops.found):
                new += stops.push(text.flush())
                new += stops.flush()
            token = self._token(choice, new)
            self.tokens.append(token)
            yield token
            if ends:
                return

    def _token(self, choice: strategies.Choice, text: str) -> Token:
        if self.logprobs is None:
            return Token(choice.id, text, choice.recycled)
        chosen, top = logprobs(choice.logits, choice.id, self.logprobs, choice.vocabulary)
        by_module = choice.recycled and self.plan.strategy == "alternate"
        return Token(choice.id, text, choice.recycled, chosen, top, "recycler" if by_module else "full")

    @property
    def counts(self) -> strategies.Counts:
        """Recycled tokens that were proposed and accepted so far."""
        return self._counts

    @property
    def result(self) -> Result:
        """What was generated so far."""
        return Result(
            text="".join(token.text for token in self.tokens),
            tokens=[token.id for token in self.tokens],
            recycled=[token.recycled for token in self.tokens],
            strategy=self.plan.strategy,
            lossless=self.lossless,
            finish_reason=self.finish_reason,
            stats=self._stats(),
            decisions=self._counts.decisions() if self._counts.decisions else None,
            logprobs=None if self.logprobs is None else [_logprobs_json(token) for token in self.tokens],
        )

    def _stats(self) -> Stats:
        work, counts = self._work, self._counts
        decode = max(0.0, self._last - self._started - work.prefill_seconds)
        later = len(self.tokens) - 1
        return Stats(
            prompt_tokens=len(self.prompt),
            reused_tokens=work.reused,
            new_tokens=len(self.tokens),
            full_runs=work.full_runs,
            recycle_runs=work.recycle_runs,
            proposed=counts.proposed,
            accepted=counts.accepted,
            acceptance_rate=counts.accepted / counts.proposed
            if self.plan.strategy != "alternate" and counts.proposed
            else None,
            tokens_per_second=later / decode if later > 0 and decode > 0 else 0.0,
            time_to_first_token_s=self._first - self._started,
            prefill_s=work.prefill_seconds,
            decode_s=decode,
        )


def _logprobs_json(token: Token) -> dict[str, Any]:
    top = [{"id": other, "logprob": value} for other, value in token.top_logprobs]
    return {"logprob": token.logprob, "top_logprobs": top, "logprobs_of": token.logprobs_of}

"""One generation: tokens as they become final, when to stop, and what it took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from recycle_onnx.contract import Kind
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.exclusive import BusyError
from recycle_onnx.runtime.decoding.logprobs import logprobs
from recycle_onnx.runtime.decoding.run import Run
from recycle_onnx.runtime.decoding.strategies import ChosenToken, Counts
from recycle_onnx.runtime.ort.native import at_work
from recycle_onnx.runtime.text import StopStrings, TextStream

Lossless = Literal["exact", "within_rounding", "no"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
ENDS: dict[FinishReason, str] = {"cancelled": " · stopped", "error": " · broken off"}
"""What the line of figures says of a text that somebody or something ended."""


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
    """The counts of one generation, and seconds of wall time.

    `reused_tokens` are those of the prompt that the caches held already. `runs_on_fewer_threads` are those of the
    full model that left cores to other programs (`fixed_threads` of `load`). `proposed` and `accepted` count recycled
    tokens; `acceptance_rate` is None where nothing was verified. `time_to_first_token_s` includes reading the prompt,
    `prefill_s` is that of both halves, `decode_s` all but `prefill_s`; `tokens_per_second` is that of the tokens after
    the first.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    full_runs: int
    recycle_runs: int
    runs_on_fewer_threads: int
    proposed: int
    accepted: int
    acceptance_rate: float | None
    tokens_per_second: float
    time_to_first_token_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Result:
    """The new text and its tokens, and how they came about.

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

    @property
    def figures(self) -> str:
        """One line for people: `auto · 42 tokens · 61.3 tokens/s · 55% accepted`, and whether it was stopped."""
        stats = self.stats
        count = f"{stats.new_tokens} token{'' if stats.new_tokens == 1 else 's'}"
        rate = "" if stats.acceptance_rate is None else f" · {stats.acceptance_rate:.0%} accepted"
        end = ENDS.get(self.finish_reason, "")
        return f"{self.strategy} · {count} · {stats.tokens_per_second:.1f} tokens/s{rate}{end}"

    def __str__(self) -> str:
        return f"{self.text}\n({self.figures})"

    def __repr__(self) -> str:
        return f"<Result {self.text!r} ({self.figures})>"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


class Generation:
    """An iterator over new tokens, for `for` and for `async for`; once it is exhausted, `result` holds the whole.

    One thread at a time may use it; `cancel` is for any thread. Under `async for` the steps run in asyncio's worker
    threads, and to cancel the task is to cancel the generation.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        lossless: Lossless,
        *,
        stop_ids: frozenset[int] = frozenset(),
        stop_strings: tuple[str, ...] = (),
        logprobs: int | None = None,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Make text of what `run` chooses, up to a token or string that ends it; `Model.stream` does so.

        Special tokens are left out of the text, but for `shown_ids`.
        """
        self.lossless, self.logprobs = lossless, logprobs
        self.stop_ids, self.stop_strings = stop_ids, stop_strings
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason = "length"
        self._run = run
        self._text, self._stops = TextStream(tokenizer, run.prompt, shown_ids), StopStrings(stop_strings)
        self._over = False

    def __repr__(self) -> str:
        result = self.result
        return f"<Generation {result.text!r} ({result.figures})>"

    @property
    def decoder(self) -> Decoder:
        """The caches that it works with."""
        return self._run.decoder

    @property
    def prompt(self) -> list[int]:
        """Token ids of the text that it continues."""
        return self._run.prompt

    @property
    def counts(self) -> Counts:
        """Recycled tokens that were proposed and accepted so far."""
        return self._run.counts

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.first

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        try:
            with self.decoder.exclusive.use(), at_work():
                return self._next()
        except StopIteration:
            if self._run.cancelled:  # by another thread, which may not have come to say so yet
                self._end_early("cancelled")
            raise
        except BusyError:
            raise
        except BaseException as error:  # nothing goes on after it
            self._over = True
            self._end_early("error" if isinstance(error, Exception) else "cancelled")
            raise

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        step = asyncio.get_running_loop().run_in_executor(None, next, self, None)
        try:
            # Shielded: a thread cannot be cancelled, and until its step ends it is at work in the caches.
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

    def finish(self) -> Result:
        """Make all tokens that are left, and return the `result`; errors as when they are asked for one by one."""
        for _ in self:
            pass
        return self.result

    def cancel(self) -> None:
        """End after the step in progress, with finish reason `cancelled`; from any thread, at any time."""
        self._run.cancel()
        self._end_early("cancelled")

    def _end_early(self, reason: FinishReason) -> None:
        """Say why there will be no more tokens, unless the text was over."""
        if self.finish_reason == "length" and len(self.tokens) < self._run.limit:
            self.finish_reason = reason

    def _next(self) -> Token:
        if self._over:
            raise StopIteration
        choice = next(self._run)
        last = len(self.tokens) + 1 == self._run.limit
        at_stop_id = choice.id in self.stop_ids
        text = "" if at_stop_id else self._stops.push(self._text.push(choice.id))
        self._over = at_stop_id or self._stops.reached
        if self._over or last:
            self.finish_reason = "stop" if self._over else "length"
        # Nothing comes any more that could complete a character or a stop string: what was held back is text.
        if at_stop_id or (last and not self._stops.reached):
            text += self._stops.push(self._text.flush())
            text += self._stops.flush()
        token = self._token(choice, text)
        self.tokens.append(token)
        return token

    def _token(self, choice: ChosenToken, text: str) -> Token:
        if self.logprobs is None:
            return Token(choice.id, text, choice.recycled)
        chosen, top = logprobs(choice.logits, choice.id, self.logprobs, choice.vocabulary)
        by_module = choice.recycled and self._run.plan.strategy == "alternate"
        return Token(choice.id, text, choice.recycled, chosen, top, "recycler" if by_module else "full")

    @property
    def result(self) -> Result:
        """The text generated so far, with its tokens and counts."""
        return Result(
            text="".join(token.text for token in self.tokens),
            tokens=[token.id for token in self.tokens],
            recycled=[token.recycled for token in self.tokens],
            strategy=self._run.plan.strategy,
            lossless=self.lossless,
            finish_reason=self.finish_reason,
            stats=self._stats(),
            decisions=self._run.decisions,
            logprobs=None if self.logprobs is None else [_logprobs_json(token) for token in self.tokens],
        )

    def _stats(self) -> Stats:
        run, work, counts = self._run, self._run.work, self._run.counts
        decode = max(0.0, run.last - run.started - work.prefill_seconds)
        later = len(self.tokens) - 1
        return Stats(
            prompt_tokens=len(run.prompt),
            reused_tokens=work.reused,
            new_tokens=len(self.tokens),
            full_runs=work.full_runs,
            recycle_runs=work.recycle_runs,
            runs_on_fewer_threads=work.runs_on_fewer_threads,
            proposed=counts.proposed,
            accepted=counts.accepted,
            acceptance_rate=counts.accepted / counts.proposed
            if run.plan.strategy != "alternate" and counts.proposed
            else None,
            tokens_per_second=later / decode if later > 0 and decode > 0 else 0.0,
            time_to_first_token_s=run.first - run.started,
            prefill_s=work.prefill_seconds,
            decode_s=decode,
        )


def _logprobs_json(token: Token) -> dict[str, Any]:
    top = [{"id": other, "logprob": value} for other, value in token.top_logprobs]
    return {"logprob": token.logprob, "top_logprobs": top, "logprobs_of": token.logprobs_of}

"""What changes the logits before a token is chosen: penalties, bans, biases, and the caller's own processors.

A processor is a function (ids, logits) -> logits: `ids` int64 [n] are all tokens before the position, prompt, text
and proposals alike; `logits` float32 [V] is a row of its own, which it may change in place and return. It must depend
on these two alone: then a position's choice does, too, and every lossless strategy gives the text of `full`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Processor = Callable[[Ids, Floats], Floats]
FORBIDDEN = np.float32(-np.inf)
"""The logit of a token that may not come: its probability is 0 under every temperature."""


class Follower(Protocol):
    """A processor that reads the text token by token, such as a grammar's matcher.

    It is called with the prefix it has read. Proposals are advanced over like text; where one is rejected, or the
    module's own are to be checked, it is rolled back. It is never asked what follows a stop id.
    """

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        """Process the logits of what follows the tokens read so far, which are the end of `ids`."""
        ...

    def advance(self, token: int) -> None:
        """Read one more token, which the latest call allowed."""
        ...

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens read."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A follower that also knows something of the text to come, which makes proposals better.

    Both only guide what is proposed: whatever they say, the text is that of `full`.
    """

    def fast_forward(self) -> list[int]:
        """Return the tokens that must follow those read so far, until there is a choice again."""
        ...

    def fitting(self, tokens: list[int]) -> int:
        """Count how many of `tokens`, from the first on, may follow those read so far."""
        ...


@runtime_checkable
class StatefulProcessor(Protocol):
    """A processor with a state, as a configuration holds it: it gives every text a follower of its own."""

    def start(self, prompt: Ids) -> Follower:
        """Start the follower of one text after `prompt` [n], which it is not told again."""
        ...


@dataclass(frozen=True)
class LogitBias:
    """A processor that adds `bias` [n] to the logits of `tokens` [n] (OpenAI's `logit_bias`)."""

    tokens: Ids
    bias: Floats

    @classmethod
    def of(cls, biases: Mapping[int, float]) -> LogitBias:
        """Make a processor from token ids and what is added to each."""
        return cls(np.array(list(biases), np.int64), np.array(list(biases.values()), np.float32))

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        logits[self.tokens] += self.bias
        return logits


@dataclass(frozen=True)
class RepetitionPenalty:
    """A processor that makes every token of prompt and text less likely (CTRL, arXiv 1909.05858; transformers)."""

    penalty: float

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        seen = logits[ids]
        logits[ids] = np.where(seen < 0, seen * np.float32(self.penalty), seen / np.float32(self.penalty))
        return logits


@dataclass(frozen=True)
class CountPenalty:
    """A processor that lowers the logits of tokens in the new text.

    It takes off `presence` once, and `frequency` for every time the token came.

    (OpenAI's presence and frequency penalty; the prompt does not count, as in vLLM.)
    """

    presence: float
    frequency: float
    prompt_tokens: int

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        seen, counts = np.unique(ids[self.prompt_tokens :], return_counts=True)
        logits[seen] -= (self.presence + self.frequency * counts).astype(np.float32)
        return logits


@dataclass(frozen=True)
class NoRepeatNGram:
    """A processor that forbids tokens which would repeat a run of `size` tokens of prompt or text (transformers)."""

    size: int

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        if len(ids) >= self.size:
            runs = np.lib.stride_tricks.sliding_window_view(ids, self.size)
            begun = (runs[:, :-1] == ids[len(ids) + 1 - self.size :]).all(axis=1)
            logits[runs[begun, -1]] = FORBIDDEN
        return logits


@dataclass(frozen=True)
class MinNewTokens:
    """A processor that forbids the end of a text while it has fewer than `count` tokens (transformers)."""

    count: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        if len(ids) - self.prompt_tokens < self.count:
            logits[list(self.stop_ids)] = FORBIDDEN
        return logits

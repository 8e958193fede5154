"""What changes the logits before a token is chosen: penalties, bans, biases, and the caller's own processors.

A processor is a function (ids, logits) -> logits: `ids` int64 [n] are all tokens before the position, prompt, text
and proposals alike; `logits` float32 [V] is a row of its own, which it may change in place and return. It must depend
on these two alone: then a position's choice does, too, and every lossless strategy gives the text of `full`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.decoding.sampling import Chooser, NothingAllowedError, Sampling, probability

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Processor = Callable[[Ids, Floats], Floats]
FORBIDDEN = np.float32(-np.inf)


class Follower(Protocol):
    """A processor that reads the text token by token, such as a grammar's matcher.

    It is called with the prefix it has read. Proposals are advanced over like text; where one is rejected, or the
    module's own are to be checked, it is rolled back. It is never asked what follows a stop id.
    """

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        """The logits of what follows the tokens read so far, which are the end of `ids`."""
        ...

    def advance(self, token: int) -> None:
        """Read one more token, which the latest call allowed."""
        ...

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens read."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """What a follower may also have: it knows something of the text to come, which makes proposals better.

    Both only guide what is proposed: whatever they say, the text is that of `full`.
    """

    def fast_forward(self) -> list[int]:
        """The tokens that must follow those read so far, until there is a choice again."""
        ...

    def fitting(self, tokens: list[int]) -> int:
        """How many of `tokens`, from the first on, may follow those read so far."""
        ...


@runtime_checkable
class StatefulProcessor(Protocol):
    """What a configuration holds in place of a processor that has a state: it gives every text one of its own."""

    def start(self, prompt: Ids) -> Follower:
        """The follower of one text after `prompt` [n], which it is not told again."""
        ...


@dataclass(frozen=True)
class LogitBias:
    """Adds `bias` [n] to the logits of `tokens` [n] (OpenAI's `logit_bias`)."""

    tokens: Ids
    bias: Floats

    @classmethod
    def of(cls, biases: Mapping[int, float]) -> LogitBias:
        """From token ids and what is added to each."""
        return cls(np.array(list(biases), np.int64), np.array(list(biases.values()), np.float32))

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        logits[self.tokens] += self.bias
        return logits


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes every token of prompt and text less likely (CTRL, arXiv 1909.05858; transformers)."""

    penalty: float

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        seen = logits[ids]
        logits[ids] = np.where(seen < 0, seen * np.float32(self.penalty), seen / np.float32(self.penalty))
        return logits


@dataclass(frozen=True)
class CountPenalty:
    """Takes `presence`, and `frequency` for every time it came, off the logits of each token of the new text.

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
    """Forbids tokens that would complete a run of `size` tokens which stands in prompt or text (transformers)."""

    size: int

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        if len(ids) >= self.size:
            runs = np.lib.stride_tricks.sliding_window_view(ids, self.size)
            begun = (runs[:, :-1] == ids[len(ids) + 1 - self.size :]).all(axis=1)
            logits[runs[begun, -1]] = FORBIDDEN
        return logits


@dataclass(frozen=True)
class MinNewTokens:
    """Forbids the tokens that end a text while it has fewer than `count` tokens (transformers)."""

    count: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        if len(ids) - self.prompt_tokens < self.count:
            logits[list(self.stop_ids)] = FORBIDDEN
        return logits


def built_in(config: GenerationConfig, prompt_tokens: int, stop_ids: Iterable[int]) -> list[Processor]:
    """The processors that a configuration asks for, in transformers' order."""
    found: list[Processor] = []
    if config.logit_bias:
        found.append(LogitBias.of(config.logit_bias))
    if config.repetition_penalty != 1:
        found.append(RepetitionPenalty(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        found.append(CountPenalty(config.presence_penalty, config.frequency_penalty, prompt_tokens))
    if config.no_repeat_ngram_size:
        found.append(NoRepeatNGram(config.no_repeat_ngram_size))
    if config.min_new_tokens and (ends := tuple(stop_ids)):
        found.append(MinNewTokens(config.min_new_tokens, prompt_tokens, ends))
    return found


class ProcessedChooser:
    """Chooses the tokens of one text from processed logits, each row with the prefix of its own position.

    What it chose last for a position is part of the prefix of later ones: the strategies choose position by position,
    and go on only with what was chosen. A choice at an earlier position takes back everything from there on, which is
    how proposals are forgotten.
    """

    def __init__(
        self,
        sampling: Sampling,
        processors: Sequence[Processor | StatefulProcessor],
        prompt: Sequence[int],
        room: int,
        vocab_size: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`room` is the most tokens that follow the prompt."""
        self.sampling = sampling
        self._ids = np.empty(len(prompt) + room, np.int64)
        self._ids[: len(prompt)] = prompt
        self._start = len(prompt)
        self._row = np.empty(vocab_size, np.float32)
        self._stop_ids = stop_ids
        start = self._prefix(len(prompt))
        self._processors: list[Processor] = []
        self._followers: list[Follower] = []
        for processor in processors:
            if isinstance(processor, StatefulProcessor):
                self._followers.append(processor.start(start))
                self._processors.append(self._followers[-1])
            else:
                self._processors.append(processor)
        self._read = [len(prompt)] * len(self._followers)
        self._foreseeing = [follower for follower in self._followers if isinstance(follower, Foreseeing)]

    def choose(self, logits: Floats, position: int, vocabulary: Ids | None = None) -> int:
        """The token id for `position`, from the logits [V] after the tokens before it.

        Raises:
            NothingAllowedError: the processors forbid every token, or the one before `position` ends the text.
        """
        if position > self._start and int(self._ids[position - 1]) in self._stop_ids:
            raise NothingAllowedError("nothing follows the token that ends the text")
        self._follow(position)
        row = self._process(logits, position, vocabulary)
        if not np.isfinite(best := row.max()):
            raise NothingAllowedError(
                f"the logits processors leave nothing to choose after {position} tokens (the best logit is {best})"
            )
        token = self.sampling.choose(row, position)
        self._ids[position] = token
        return token

    def confidence(self, logits: Floats, token: int, vocabulary: Ids | None = None) -> float:
        """The probability of the token chosen last, by the processed logits it was chosen from."""
        return probability(self._row, token)

    def fast_forward(self, position: int) -> list[int]:
        """What the first follower that foresees anything does, up to a token that the model does not have."""
        self._follow(position)
        for follower in self._foreseeing:
            tokens = list(takewhile(lambda token: 0 <= token < len(self._row), map(int, follower.fast_forward())))
            if tokens:
                return tokens
        return []

    def fitting(self, tokens: list[int], position: int) -> list[int]:
        """The first of `tokens` that every follower lets pass."""
        self._follow(position)
        for follower in self._foreseeing:
            tokens = tokens[: max(0, follower.fitting(tokens))]
        return tokens

    def _prefix(self, position: int) -> Ids:
        prefix = self._ids[:position]
        prefix.flags.writeable = False
        return prefix

    def _follow(self, position: int) -> None:
        """Let the followers read what is new before `position`, or forget what is no longer there."""
        for index, follower in enumerate(self._followers):
            if self._read[index] > position:
                follower.rollback(self._read[index] - position)
                self._read[index] = position
            for token in self._ids[self._read[index] : position].tolist():
                follower.advance(token)
                self._read[index] += 1

    def _process(self, logits: Floats, position: int, vocabulary: Ids | None) -> Floats:
        """The row after all processors, over the whole vocabulary: what a draft vocabulary lacks is forbidden."""
        row, prefix = self._row, self._prefix(position)
        if vocabulary is None:
            row[:] = logits
        else:
            row[:] = FORBIDDEN
            row[vocabulary] = logits
        for processor in self._processors:
            made = processor(prefix, row)
            if made is not row:
                row[:] = _checked(made, len(row), processor)
        return row


def _checked(made: object, vocab_size: int, processor: object) -> Floats:
    if isinstance(made, np.ndarray) and made.shape == (vocab_size,) and np.issubdtype(made.dtype, np.floating):
        return made
    got = f"{made.dtype} {list(made.shape)}" if isinstance(made, np.ndarray) else type(made).__name__
    raise InputError(f"the processor {processor!r} gave {got}; expected logits, a float array [{vocab_size}]")


def make_chooser(
    config: GenerationConfig,
    prompt: Sequence[int],
    room: int,
    vocab_size: int,
    stop_ids: frozenset[int],
    constraint: StatefulProcessor | None = None,
) -> Chooser:
    """Who chooses the tokens of one text: plain sampling where nothing is to be processed.

    `constraint` comes last, so that nothing allows again what it forbids.
    """
    processors = [*built_in(config, len(prompt), stop_ids), *config.processors]
    if constraint is not None:
        processors.append(constraint)
    if not processors:
        return config.sampling
    return ProcessedChooser(config.sampling, processors, prompt, room, vocab_size, stop_ids)

"""Who chooses the tokens of one text: plain sampling, or sampling from logits that processors have changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

import numpy as np

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.config import GenerationConfig
from recycle_onnx.runtime.decoding.processors import (
    FORBIDDEN,
    CountPenalty,
    Floats,
    Follower,
    Foreseeing,
    Ids,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    Processor,
    RepetitionPenalty,
    StatefulProcessor,
)
from recycle_onnx.runtime.decoding.sampling import Chooser, NothingAllowedError, Sampling, probability


def make_chooser(
    config: GenerationConfig,
    prompt: Sequence[int],
    room: int,
    vocab_size: int,
    stop_ids: frozenset[int],
    constraint: StatefulProcessor | None = None,
) -> Chooser:
    """Make the object that chooses the tokens of one text: plain sampling where nothing is to be processed.

    `constraint` comes last, so that nothing allows again what it forbids.
    """
    processors = [*built_in(config, len(prompt), stop_ids), *config.processors]
    if constraint is not None:
        processors.append(constraint)
    if not processors:
        return config.sampling
    return ProcessedChooser(config.sampling, processors, prompt, room, vocab_size, stop_ids)


def built_in(config: GenerationConfig, prompt_tokens: int, stop_ids: Iterable[int]) -> list[Processor]:
    """Return the processors that a configuration asks for, in transformers' order."""
    processors: list[Processor] = []
    if config.logit_bias:
        processors.append(LogitBias.of(config.logit_bias))
    if config.repetition_penalty != 1:
        processors.append(RepetitionPenalty(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        processors.append(CountPenalty(config.presence_penalty, config.frequency_penalty, prompt_tokens))
    if config.no_repeat_ngram_size:
        processors.append(NoRepeatNGram(config.no_repeat_ngram_size))
    if config.min_new_tokens and (ends := tuple(stop_ids)):
        processors.append(MinNewTokens(config.min_new_tokens, prompt_tokens, ends))
    return processors


class ProcessedChooser:
    """A chooser of one text's tokens from processed logits, each row with the prefix of its own position.

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
        """Start the processors on `prompt`; `room` is the most tokens that follow it."""
        self.sampling = sampling
        self._ids = np.empty(len(prompt) + room, np.int64)  # filled as far as the text goes; processors get views
        self._ids[: len(prompt)] = prompt
        self._start = len(prompt)  # of the new tokens
        self._row = np.empty(vocab_size, np.float32)  # a copy of logits, for processors to change
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
        self._read = [len(prompt)] * len(self._followers)  # how many tokens each of the followers has been told of
        self._foreseeing = [follower for follower in self._followers if isinstance(follower, Foreseeing)]

    def choose(self, logits: Floats, position: int, vocabulary: Ids | None = None) -> int:
        """Choose the token id for `position`, from the logits [V] after the tokens before it.

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
        """Return the probability of the token chosen last, by the processed logits it was chosen from."""
        return probability(self._row, token)

    def fast_forward(self, position: int) -> list[int]:
        """Return the tokens that the first follower foresees, up to one that the model does not have."""
        self._follow(position)
        for follower in self._foreseeing:
            tokens = list(takewhile(lambda token: 0 <= token < len(self._row), map(int, follower.fast_forward())))
            if tokens:
                return tokens
        return []

    def fitting(self, tokens: list[int], position: int) -> list[int]:
        """Return the first of `tokens` that every follower lets pass."""
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
        """Return the processed row over the whole vocabulary; what a draft vocabulary lacks is forbidden."""
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

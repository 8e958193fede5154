"""Processors that tell wrong prefixes, and settings drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
WHEEL = 5


def moody(ids: Ids, logits: Floats) -> Floats:
    """Another preference after every prefix: one token more or less in it changes nearly every choice."""
    taste = np.random.default_rng([len(ids), *ids[-3:].tolist()]).normal(size=len(logits))
    return logits + taste.astype(np.float32)


class Wheel:
    """A stateful processor: what stands now decides which remainder the next token may not have.

    Its followers fail where they have not read exactly the tokens before the position.
    """

    def __init__(self) -> None:
        self.rollbacks = 0
        self.started = 0

    def start(self, prompt: Ids) -> WheelFollower:
        self.started += 1
        return WheelFollower(self, len(prompt))


class WheelFollower:
    def __init__(self, owner: Wheel, prompt_tokens: int) -> None:
        self.owner, self.prompt_tokens = owner, prompt_tokens
        self.read: list[int] = []

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        assert ids[self.prompt_tokens :].tolist() == self.read
        logits[sum(self.read) % WHEEL :: WHEEL] = -np.inf
        return logits

    def advance(self, token: int) -> None:
        assert token % WHEEL != sum(self.read) % WHEEL
        self.read.append(token)

    def rollback(self, count: int) -> None:
        assert 0 < count <= len(self.read)
        self.owner.rollbacks += 1
        del self.read[-count:]


class Seer(Wheel):
    """A wheel that also foretells the text, rightly or not: it may cost time and change nothing."""

    def start(self, prompt: Ids) -> SeerFollower:
        self.started += 1
        return SeerFollower(self, len(prompt))


class SeerFollower(WheelFollower):
    def fast_forward(self) -> list[int]:
        """Up to 20 tokens, more than fit into a step; the first one is allowed."""
        dice = np.random.default_rng(self.read)
        tokens: list[int] = dice.integers(0, 3 * WHEEL, dice.integers(0, 20)).tolist()
        return tokens[: self.fitting(tokens[:1]) * len(tokens)]

    def fitting(self, tokens: list[int]) -> int:
        for count, token in enumerate(tokens):
            if token % WHEEL == (sum(self.read) + sum(tokens[:count])) % WHEEL:
                return count
        return len(tokens)


def obeys_the_wheel(tokens: list[int]) -> bool:
    return all(token % WHEEL != sum(tokens[:place]) % WHEEL for place, token in enumerate(tokens))


def settings(vocabulary: int) -> st.SearchStrategy[dict[str, Any]]:
    """Any combination of the controls, those of sampling included."""
    token = st.integers(0, vocabulary - 1)
    return st.fixed_dictionaries(
        {"max_new_tokens": st.integers(8, 30), "seed": st.integers(0, 2**32)},
        optional={
            "min_new_tokens": st.integers(0, 8),
            "temperature": st.sampled_from([0.7, 1.0, 1.5]),
            "top_k": st.integers(1, vocabulary),
            "top_p": st.floats(0.3, 1.0),
            "min_p": st.floats(0.0, 0.5),
            "repetition_penalty": st.floats(0.8, 1.8),
            "presence_penalty": st.floats(-2, 2),
            "frequency_penalty": st.floats(-2, 2),
            "no_repeat_ngram_size": st.integers(1, 4),
            "logit_bias": st.dictionaries(token, st.sampled_from([-4.0, 1.5, 4.0, float("-inf")]), max_size=4),
            "stop_ids": st.lists(token, max_size=2),
            "logprobs": st.integers(0, 3),
            "processors": st.sampled_from([(moody,), (Wheel(),), (Seer(),), (moody, Wheel()), (Wheel(), Seer())]),
        },
    )

"""The strategies: in which order full steps and recycle steps run, and which recycled tokens stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from recycle_onnx.runtime.decoder import Decoder
from recycle_onnx.runtime.sampling import Sampling

NAMES = ("full", "alternate", "verify")


class Choice(NamedTuple):
    """A token that is final, and whether the module chose it first."""

    id: int
    recycled: bool


@dataclass
class Counts:
    """Recycled tokens that were proposed, and those of them that stayed."""

    proposed: int = 0
    accepted: int = 0


def full(decoder: Decoder, prompt: list[int], sampling: Sampling, limit: int) -> Iterator[Choice]:
    """One full step a token: what the other strategies are compared with."""
    logits = decoder.prefill(prompt)
    position = len(prompt)
    for _ in range(limit - 1):
        token = sampling.choose(logits[-1], position)
        yield Choice(token, recycled=False)
        logits = decoder.full_step([token], keep=1)
        position += 1
    yield Choice(sampling.choose(logits[-1], position), recycled=False)


def alternate(decoder: Decoder, prompt: list[int], sampling: Sampling, limit: int, counts: Counts) -> Iterator[Choice]:
    """The full model and the module take turns, and every recycled token stays (RecycleGPT's decoding)."""
    logits = decoder.prefill(prompt)
    position, end = len(prompt), len(prompt) + limit
    pending: list[int] = []
    while True:
        token = sampling.choose(logits[-1], position)
        yield Choice(token, recycled=False)
        if position + 1 == end:
            return
        draft = decoder.recycle_step([*pending[1:], token]) if pending else decoder.start_recycling(token)
        recycled = sampling.choose(draft[-1], position + 1)
        counts.proposed += 1
        counts.accepted += 1
        yield Choice(recycled, recycled=True)
        position += 2
        if position == end:
            return
        pending = [token, recycled]
        logits = decoder.full_step(pending, keep=1)


def verify(decoder: Decoder, prompt: list[int], sampling: Sampling, limit: int, counts: Counts) -> Iterator[Choice]:
    """A recycled token stays where it equals the full model's own choice: the same text as `full`.

    One full step reads the last token and the proposals; its row i says what follows pending[i].
    """
    logits = decoder.prefill(prompt)
    position, end = len(prompt), len(prompt) + limit
    pending: list[int] = []
    proposals: list[int] = []
    while True:
        # 1. Keep proposals while the full model agrees; its choice after the last kept one comes for free.
        kept: list[int] = []
        while True:
            token = sampling.choose(logits[len(kept)], position)
            accepted = len(kept) < len(proposals) and token == proposals[len(kept)]
            kept.append(token)
            position += 1
            counts.accepted += accepted
            if not accepted:
                break
            yield Choice(token, recycled=True)
        # 2. What the full model read beyond them is cropped, and the free token streamed before anything else runs.
        decoder.full.crop(position - 1)
        yield Choice(token, recycled=False)
        if position == end:
            return
        # 3. The module reads the kept tokens with their true hidden states, and proposes what follows.
        proposals = []
        if position + 1 < end:
            draft = decoder.recycle_step(kept) if pending else decoder.start_recycling(token)
            proposals = [sampling.choose(draft[-1], position)]
            counts.proposed += 1
        # 4. The full model reads the last token and the proposal together.
        pending = [token, *proposals]
        logits = decoder.full_step(pending, keep=len(pending))


def run(
    strategy: str, decoder: Decoder, prompt: list[int], sampling: Sampling, limit: int, counts: Counts
) -> Iterator[Choice]:
    """Yield `limit` tokens after `prompt` as they become final; the consumer may stop at any of them."""
    if strategy == "full":
        return full(decoder, prompt, sampling, limit)
    return (alternate if strategy == "alternate" else verify)(decoder, prompt, sampling, limit, counts)

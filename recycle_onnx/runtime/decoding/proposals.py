"""Where proposals for the next tokens come from: the recyclable module, the text itself, or its constraint."""

from __future__ import annotations

from typing import Protocol

from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import STEP_ROWS, Floats
from recycle_onnx.runtime.decoding.sampling import Chooser, choose_if_allowed


class Proposer(Protocol):
    """What guesses at what follows; the full model has the last word."""

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Propose at most `room` tokens from `position` on, after the full model added `kept` to the text."""
        ...


class ModuleProposer:
    """The recyclable module: one token from the full model's hidden state, more from the module's own (a chain).

    A chain ends early at a token to which the module gives less than `min_confidence`.
    """

    def __init__(self, decoder: Decoder, sampling: Chooser, chain: int, min_confidence: float) -> None:
        self.decoder, self.sampling = decoder, sampling
        self.chain, self.min_confidence = min(chain, decoder.longest_chain), min_confidence
        self.cycles = 0

    def postpone(self, kept: list[int]) -> None:
        """Leave the kept tokens for later: no proposal is wanted now."""
        if self.cycles:
            self.decoder.postpone(kept)
        else:
            self.decoder.start_recycling(kept[-1])
            self.cycles = 1

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Read the kept tokens with their true hidden states, then the module's own guesses with its own."""
        draft = self.decoder.recycle_step(kept) if self.cycles else self.decoder.start_recycling(kept[-1])
        self.cycles += 1
        proposals: list[int] = []
        for index in range(min(self.chain, room)):
            if index:
                draft = self.decoder.chain_step(proposals[-1])
            token = self._choose(draft[-1], position + index)
            if token is None:
                break
            proposals.append(token)
        self.decoder.forget_guesses()
        return proposals

    def _choose(self, logits: Floats, position: int) -> int | None:
        """Return the module's token for `position`; None where it is not sure enough, or may say nothing."""
        ids = self.decoder.draft_ids
        token = choose_if_allowed(self.sampling, logits, position, ids)
        if token is None or self.min_confidence == 0:
            return token
        return token if self.sampling.confidence(logits, token, ids) >= self.min_confidence else None


class LookupProposer:
    """The text itself: what followed the last time the latest tokens stood there (prompt lookup decoding).

    Looks for the longest match of at most `longest` and at least `shortest` tokens.
    """

    def __init__(self, prompt: list[int], sampling: Chooser, chain: int, longest: int = 4, shortest: int = 2) -> None:
        self.sampling, self.chain = sampling, chain
        self.longest, self.shortest = longest, shortest
        self._text: list[int] = []  # all tokens, prompt and answer: proposals are pieces of it
        self._followed: dict[tuple[int, ...], int] = {}  # where in it each sequence ended last
        self._add(prompt)

    def postpone(self, kept: list[int]) -> None:
        """Read the kept tokens only: no proposal is wanted now."""
        self._add(kept)

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Propose what followed the longest earlier match of the text's end, as far as it may stand here."""
        self._add(kept)
        for size in range(min(self.longest, len(self._text)), self.shortest - 1, -1):
            start = self._followed.get(tuple(self._text[-size:]))
            if start is not None:
                return self.sampling.fitting(self._text[start : start + min(self.chain, room)], position)
        return []

    def _add(self, tokens: list[int]) -> None:
        """Append tokens; remember, for every n-gram that now has a successor, where that stands."""
        for token in tokens:
            for size in range(self.shortest, min(self.longest, len(self._text)) + 1):
                self._followed[tuple(self._text[-size:])] = len(self._text)
            self._text.append(token)


class ConstraintProposer:
    """A proposer of tokens about which a constraint leaves no choice (fast-forward tokens).

    It stands aside where another proposer's chain reaches further.

    It costs no step of the module, and is nearly always right: a model may only cut the same text into other tokens.
    """

    def __init__(self, other: ModuleProposer | LookupProposer, sampling: Chooser) -> None:
        self.other, self.sampling = other, sampling

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Propose the longer of both proposals; the other one is not asked where it cannot be longer."""
        forced = self.sampling.fast_forward(position)[: min(room, STEP_ROWS - 1)]
        if len(forced) >= min(self.other.chain, room):
            self.other.postpone(kept)
            return forced
        return max(self.other.propose(kept, position, room), forced, key=len)

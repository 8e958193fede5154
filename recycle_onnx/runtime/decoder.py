"""Both halves on one text: prefill, the full step and the recycle step."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import GraphSpec
from recycle_onnx.runtime.half import Floats, Half, States

CHUNK = 256
AHEAD = 1024
"""New tokens that room is made for before they come."""
WINDOW = 64
"""Most tokens that the module may fall behind."""


class Decoder:
    """The state of one generation: what both halves have read.

    The module lags one token: its row p needs token p+1, so it has read one token less than there are.
    """

    def __init__(
        self,
        sessions: tuple[ort.InferenceSession, ort.InferenceSession | None],
        specs: tuple[GraphSpec, GraphSpec | None],
        context_length: int,
        chunk: int = CHUNK,
        draft_ids: NDArray[np.int64] | None = None,
    ) -> None:
        """`draft_ids` are the token ids of the module's logits where it has a vocabulary of its own."""
        self.draft_ids = draft_ids
        self.full = Half(sessions[0], specs[0], context_length)
        self.recycler: Half | None = None
        if sessions[1] is not None and specs[1] is not None:
            self.recycler = Half(sessions[1], specs[1], context_length, hidden_in=self.full.hidden)
        self.chunk = chunk
        self._prompt: list[int] = []
        self._prompt_hidden: States = np.zeros((0, specs[0].state_size), specs[0].float_type)
        self.prefill_seconds = 0.0
        self._own_state: States = np.zeros((1, specs[0].state_size), specs[0].float_type)
        self._last_row = 0
        self.waiting: list[int] = []
        self._window: States = np.zeros((WINDOW, specs[0].state_size), specs[0].float_type)

    def prefill(self, prompt: list[int], limit: int = 0) -> Floats:
        """Read the prompt in chunks; give the logits [1, V] after its last token.

        The hidden states are kept until the module reads them with `start_recycling`. At most `limit` tokens will
        follow: room for them is made now, since to make it later is to copy the caches.
        """
        started = time.perf_counter()
        for half in (self.full, self.recycler):
            if half is not None:
                half.reserve(len(prompt) + min(limit, AHEAD))
        self._prompt = prompt
        self._prompt_hidden = np.empty((len(prompt), self.full.spec.state_size), self.full.spec.float_type)
        for start in range(0, len(prompt), self.chunk):
            piece = slice(start, start + self.chunk)
            logits = self.full.read(prompt[piece], None, self._prompt_hidden[piece])
        self.prefill_seconds += time.perf_counter() - started
        return logits

    def start_recycling(self, first: int) -> Floats:
        """Let the module read the prompt and the `first` new token; give its logits [1, V] for the second."""
        assert self.recycler is not None
        started = time.perf_counter()
        tokens, hidden = [*self._prompt[1:], first], self._prompt_hidden
        states = np.empty((min(self.chunk, len(tokens)), hidden.shape[1]), hidden.dtype)
        for start in range(0, len(tokens), self.chunk):
            piece = tokens[start : start + self.chunk]
            logits = self.recycler.read(piece, hidden[start : start + len(piece)], states[: len(piece)])
        self.recycler.hidden[0], self._last_row = states[len(piece) - 1], 0
        self._prompt_hidden = hidden[:0]
        self.prefill_seconds += time.perf_counter() - started
        return logits

    def full_step(self, tokens: list[int], keep: int) -> Floats:
        """Let the full model read `tokens`; give the logits [keep, V] of the last `keep`."""
        return self.full.step(tokens, keep)

    def recycle_step(self, kept: list[int]) -> Floats:
        """Let the module read the tokens after the last full step's first rows; give logits [1, V] for the next.

        `kept[i]` follows the i-th token of the last full step, whose hidden state it is paired with. Postponed tokens
        are read first, in the same run.
        """
        assert self.recycler is not None
        if self.waiting:
            self.postpone(kept)
            return self._catch_up()
        self._last_row = len(kept) - 1
        return self.recycler.step(kept, keep=1)

    def postpone(self, kept: list[int]) -> None:
        """Keep tokens and hidden states for the next `recycle_step`; a full window is read without waiting for it."""
        if len(self.waiting) + len(kept) > WINDOW:
            self._catch_up()
        rows = slice(len(self.waiting), len(self.waiting) + len(kept))
        self._window[rows] = self.full.hidden[: len(kept)]
        self.waiting += kept

    def _catch_up(self) -> Floats:
        assert self.recycler is not None
        count = len(self.waiting)
        states = np.empty((count, self._window.shape[1]), self._window.dtype)
        logits = self.recycler.read(self.waiting, self._window[:count], states)
        self.recycler.hidden[0], self._last_row = states[-1], 0
        self.waiting = []
        return logits

    def chain_step(self, token: int) -> Floats:
        """Let the module read a token of its own with the state it had before; give logits [1, V] for the next.

        The row it writes stands on a guess: crop the module before the next `recycle_step`.
        """
        assert self.recycler is not None
        self._own_state[0] = self.recycler.hidden[self._last_row]
        self._last_row = 0
        return self.recycler.step([token], keep=1, hidden_in=self._own_state)

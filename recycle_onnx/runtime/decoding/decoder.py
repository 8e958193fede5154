"""Both halves on one text: prefill, the full step and the recycle step; on a longer text, what is new of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import GraphSpec
from recycle_onnx.runtime.decoding.exclusive import Exclusive
from recycle_onnx.runtime.decoding.fewer_threads import FewerThreads
from recycle_onnx.runtime.decoding.half import Floats, Half, States
from recycle_onnx.runtime.decoding.read_tokens import ReadTokens
from recycle_onnx.runtime.decoding.waiting_states import WaitingStates

CHUNK = 256
"""Tokens of a prompt that are read in one run: memory for activations grows with it, and Ctrl-C waits for one run."""
AHEAD = 1024
"""New tokens that room is made for before they come."""
WINDOW = 64
"""Most tokens that the module may fall behind while a strategy uses it: it catches up in one run, which would grow
without a bound."""
SPARE_ROWS = 256
"""Rows that a module with a window reads of a prompt beyond those that the next one sees: a text can go back so far,
as a chat does whose template ends an answer in other tokens, and nothing has to be read again."""
UNREAD = "recycler.unread"
"""The name in a snapshot of how many rows the module has left out."""
DROPPED = "dropped"
"""The name in a snapshot, behind that of a half, of how many rows its layers with a window have dropped."""

Watch = Callable[[int, int], None]
"""Told after each chunk of a prompt how many tokens are read, and of how many; what it raises ends the reading."""

Recall = Callable[["Decoder", list[int]], int]
"""Restores what it knows of a prompt into a decoder that knows less, and returns how many tokens that are."""


def nobody(read: int, total: int) -> None:
    """Ignore how far the prompt is read."""


def nothing(decoder: Decoder, prompt: list[int]) -> int:
    """Know nothing of any prompt."""
    return 0


def common_prefix(first: list[int], second: list[int]) -> int:
    """Count the tokens that two texts have in common at their beginning."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in alike)


@dataclass
class Work:
    """The work on one text since its `prefill`: tokens that had been read before, and runs.

    Reading the prompt counts as one run. Of the full model's, `runs_on_fewer_threads` left cores to other programs.

    `prefill_seconds` is that of both halves. A decoder has a new one for every text: whoever remembers it knows whether
    the caches are still those of the same text.
    """

    reused: int = 0
    full_runs: int = 0
    recycle_runs: int = 0
    runs_on_fewer_threads: int = 0
    prefill_seconds: float = 0.0


class Decoder:
    """Both halves at work on one text: `tokens` says what they have read of it.

    The module lags: hidden states that it has not read wait for it. They are those of the positions from its
    `true_rows` on: first the `states` that were put aside, then what the latest full step left.
    """

    def __init__(
        self,
        sessions: tuple[ort.InferenceSession, ort.InferenceSession | None],
        specs: tuple[GraphSpec, GraphSpec | None],
        context_length: int,
        chunk: int = CHUNK,
        draft_ids: NDArray[np.int64] | None = None,
        fewer_threads: FewerThreads | None = None,
    ) -> None:
        """Bind both halves to their sessions.

        `draft_ids` are the token ids of the module's logits where it has a vocabulary of its own. `fewer_threads` has
        other sessions of both halves, if there are some, and says which of them steps are to run on.
        """
        self.draft_ids = draft_ids
        self.tokens = ReadTokens()
        self.full = Half(sessions[0], specs[0], context_length, tokens=self.tokens.full)
        self.recycler: Half | None = None
        if sessions[1] is not None and specs[1] is not None:
            self.recycler = Half(sessions[1], specs[1], context_length, self.full.states, self.tokens.module)
        self.chunk = chunk
        self.work = Work()
        self.exclusive = Exclusive()
        self.states = WaitingStates(specs[0].state_size, specs[0].float_type)
        self.recall: Recall = nothing
        self._fewer_threads = fewer_threads
        self._place = 0  # of a chain, which the module has got to
        self._own_state: States = np.zeros((1, specs[0].state_size), specs[0].float_type)
        self._watch: Watch = nobody  # of the text that is being read

    @property
    def has_dropped_rows(self) -> bool:
        """Whether layers with a window lack rows of tokens that were read."""
        return any(half.cache.dropped and half.tokens for half in self._halves)

    def keep_all_rows(self) -> None:
        """Let layers with a window drop no rows: for a fresh decoder that will go back in its text, often and far."""
        for half in self._halves:
            half.cache.keep_all_rows()

    def __repr__(self) -> str:
        return f"<Decoder: {len(self.tokens.full)} tokens read>"

    @property
    def longest_chain(self) -> int:
        """Most tokens that the module can propose at a time; 0 without one."""
        if self.recycler is None:
            return 0
        return self.recycler.spec.longest_chain or sys.maxsize

    @property
    def waiting(self) -> int:
        """Rows that the module has to read before those of the last full step."""
        return len(self.states)

    def prefill(self, prompt: list[int], limit: int = 0, watch: Watch = nobody) -> Floats:
        """Read the prompt in chunks, but for what it has in common with the text before; give logits [1, V].

        The logits are those after the last token. The hidden states are kept until the module reads them with
        `start_recycling`. At most `limit` tokens will follow: room for them is made now, since to make it later is to
        copy the caches. `watch` is told of each chunk, of the module's too. Before that `recall` may know more of the
        prompt, and the time that it takes counts as reading.
        """
        started = time.perf_counter()
        self._watch = watch
        reused = self._go_back(prompt)
        for half in self._halves:
            half.reserve(len(prompt) + min(limit, AHEAD))
        if self.recall(self, prompt):
            reused = self._go_back(prompt)
        work = self.work = Work(reused, full_runs=1)
        for start in range(work.reused, len(prompt), self.chunk):
            piece = prompt[start : start + self.chunk]
            logits = self._read(piece)
            self._leave_out(prompt)
            watch(start + len(piece), len(prompt))
        self.work.prefill_seconds += time.perf_counter() - started
        return logits

    def start_recycling(self, first: int) -> Floats:
        """Let the module read the prompt and the `first` new token; give its logits [1, V] for the second."""
        started = time.perf_counter()
        logits = self._catch_up(first)
        self.work.prefill_seconds += time.perf_counter() - started
        return logits

    def full_step(self, tokens: list[int], keep: int) -> Floats:
        """Let the full model read `tokens`; give the logits [keep, V] of the last `keep`."""
        self._put_aside()
        if self._fewer_threads is None:
            logits = self.full.step(tokens, keep)
        else:
            logits = self._chosen_step(self._fewer_threads, tokens, keep)
        self.work.full_runs += 1
        return logits

    def _chosen_step(self, threads: FewerThreads, tokens: list[int], keep: int) -> Floats:
        """Run a full step, and the module's that follow, on all threads or on fewer, and tell how long it took."""
        fewer = threads.sessions()
        full, module = fewer or (None, None)
        self.full.step_on(full)
        if self.recycler is not None:
            self.recycler.step_on(module)
        logits = self.full.step(tokens, keep)
        threads.took(len(tokens), self.full.length, self.full.seconds, fewer=fewer is not None)
        self.work.runs_on_fewer_threads += fewer is not None
        return logits

    def recycle_step(self, kept: list[int]) -> Floats:
        """Let the module read the tokens after the last full step's first rows; give logits [1, V] for the next.

        `kept[i]` follows the i-th token of the last full step, whose hidden state it is paired with. What waits is
        read first, in the same run.
        """
        if self.waiting:
            return self._catch_up(kept[-1])
        assert self.recycler is not None
        logits = self.recycler.step(kept, keep=1)
        self._module_has_read()
        return logits

    def postpone(self, kept: list[int]) -> None:
        """Leave the kept tokens for the next `recycle_step`; a full window is read without waiting for it."""
        if self.waiting + len(kept) > WINDOW:
            self._catch_up(kept[-1])

    def chain_step(self, token: int) -> Floats:
        """Let the module read a token of its own with the state it had before; give logits [1, V] for the next.

        The row it writes stands on a guess: `forget_guesses` before the next `recycle_step`. A module without layers
        reads nothing: its latest run has proposed for all places, of which there are `longest_chain`.
        """
        assert self.recycler is not None
        if self.recycler.spec.longest_chain is not None:
            self._place += 1
            return self.recycler.by_place[-1:, self._place]
        self._own_state[0] = self.recycler.states.last()
        self.work.recycle_runs += 1
        return self.recycler.step([token], keep=1, hidden_in=self._own_state)

    def keep(self, count: int) -> None:
        """Forget all that was read but the first `count` tokens, and what the module has made of them."""
        self.states.cut(count - self.tokens.true_rows)
        self.tokens.keep(count)

    def keep_scored(self, count: int) -> None:
        """Forget all of a scored text but its first `count` tokens, in both halves."""
        self.tokens.keep_scored(count)

    def forget_guesses(self) -> None:
        """Forget what the module has read of its own guesses."""
        self.tokens.forget_guesses()

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return all that was read, as named arrays that alias the caches; `restore` takes it.

        `{half}.tokens` i64 [n] and `{half}.past_key_values.{i}.key` and `.value` [K, n, D] of each half, and `states`
        [m, state_size], those that the module has not read. `recycler.unread` i64 [1] is there where the module has
        left out so many rows, the first ones. So is `{half}.dropped` where layers with a window have dropped rows: keys
        and values of theirs are [K, n - dropped, D].
        """
        self._put_aside()
        self.tokens.forget_guesses()
        if not all(half.can_go_on(half.length) for half in self._halves):
            self.keep(0)
        arrays = _read_by(self.full)
        if self.recycler is not None:
            self.states.cut(self.full.length - self.tokens.true_rows)
            arrays |= _read_by(self.recycler)
            if self.tokens.unread:
                arrays[UNREAD] = np.array([self.tokens.unread])
        return {**arrays, "states": self.states.rows()}

    def restore(self, snapshot: dict[str, NDArray[Any]], start: int = 0) -> None:
        """Take over what a decoder of the same model had read, behind the first `start` rows of both halves."""
        # Another text from now on: a run that still holds the old object may not go on (`OvertakenError`).
        self.work = Work()
        if any(dropped_rows(snapshot, half) and not half.cache.drops_rows() for half in self._halves):
            self.keep(0)  # here the graphs need all rows, of which a provider that can do without has dropped some
            return
        left_out = int(snapshot[UNREAD][0]) if UNREAD in snapshot else 0
        # Rows behind `start` may have looked at what their own text left out before it.
        self.tokens.unread = max(min(self.tokens.unread, start), left_out)
        for half in self._halves:
            kind = half.spec.kind
            past = [snapshot[f"{kind}.{name}"] for name in half.spec.past_names()]
            half.restore(snapshot[f"{kind}.tokens"].tolist(), past, start, dropped_rows(snapshot, half))
        self.states.clear()
        if self.recycler is not None:
            self.tokens.module_is_true()
            self.states.room(len(snapshot["states"]))[:] = snapshot["states"]
            self.keep(self.tokens.true_rows + len(self.states))  # what else was read, the module could not go on from

    def close(self) -> None:
        """Let go of sessions and caches; only the counts are left."""
        for half in self._halves:
            half.close()
        self.states.clear()

    def reusable(self, prompt: list[int]) -> int:
        """Count the tokens of a prompt that need not be read again.

        The last token is always read, for its logits. So is whatever the module has not read and no state waits for,
        and all where layers with a window lack rows.
        """
        tokens = self.tokens
        same = min(common_prefix(tokens.full, prompt), len(prompt) - 1)
        if self.recycler is not None:
            # Row p of the module has read token p + 1: its tokens are the prompt's from the second one on.
            rows = min(tokens.true_rows, common_prefix(tokens.module, prompt[1:]), same)
            waiting = self.full.length - tokens.true_rows  # states, put aside or not
            if rows < tokens.true_rows or same - rows > waiting:
                same = rows
            is_left_out = tokens.unread and rows < tokens.unread + self._reach
            if is_left_out or not self.recycler.can_go_on(rows):  # what comes would see rows that are not there
                same = max(0, rows - self._reach)
        return same if self.full.can_go_on(same) else 0

    def _go_back(self, prompt: list[int]) -> int:
        """Forget what is not the prompt's beginning; give the tokens that need not be read again."""
        self._put_aside()
        same = self.reusable(prompt)
        self.keep(same)
        self.tokens.forget_guesses()
        if self.recycler is not None and not self.recycler.can_go_on(self.recycler.length):
            self.tokens.unread = self.recycler.length
            self.recycler.leave_out()
        return same

    def _read(self, piece: list[int]) -> Floats:
        if self.recycler is None:
            spec = self.full.spec
            return self.full.read(piece, None, np.empty((len(piece), spec.state_size), spec.float_type))
        return self.full.read(piece, None, self.states.room(len(piece)))

    @property
    def _halves(self) -> list[Half]:
        return [self.full] if self.recycler is None else [self.full, self.recycler]

    @property
    def _reach(self) -> int:
        """Rows that decide what the module says of the last one; as many as a text can have where it has no window."""
        reach = None if self.recycler is None else self.recycler.spec.reach
        return self.full.cache.limit if reach is None else reach

    def _leave_out(self, prompt: list[int]) -> None:
        """Let the module pass over rows that are read, and that what follows the prompt does not look back at."""
        first = self.tokens.true_rows
        end = min(len(prompt) - self._reach - SPARE_ROWS, self.full.length)
        if self.recycler is None or end <= first:
            return
        self.tokens.unread = end  # first: whatever interrupts the rest, no row before can be relied on
        self.recycler.skip(prompt[first + 1 : end + 1])
        self.states.drop(end - first)
        self.tokens.module_is_true()

    def _put_aside(self) -> None:
        """Keep the last full step's hidden states that the module has not read: the next step overwrites them."""
        rows = self.full.length - self.tokens.true_rows - len(self.states)
        if self.recycler is not None and rows > 0:
            self.states.room(rows)[:] = self.full.hidden[:rows]

    def _catch_up(self, last: int) -> Floats:
        """Let the module read all that the full model has read, and the `last` token, which it has not."""
        assert self.recycler is not None
        self._put_aside()
        # A state is read with the token after it, so the tokens begin one later than the states, and end with `last`.
        tokens, hidden = [*self.tokens.full[self.tokens.true_rows + 1 :], last], self.states.rows()
        states = np.empty((min(self.chunk, len(tokens)), hidden.shape[1]), hidden.dtype)
        for start in range(0, len(tokens), self.chunk):
            piece = tokens[start : start + self.chunk]
            logits = self.recycler.read(piece, hidden[start : start + len(piece)], states[: len(piece)])
            if start + len(piece) < len(tokens):
                self._watch(len(tokens), len(tokens))  # to be interrupted here; what was read counts only at the end
        self.recycler.states.put(states[len(piece) - 1])
        self._module_has_read()
        return logits

    def _module_has_read(self) -> None:
        self._place = 0
        self.states.clear()
        self.tokens.module_is_true()
        self.work.recycle_runs += 1


def dropped_rows(snapshot: Mapping[str, NDArray[Any]], half: Half) -> int:
    """Return how many rows layers with a window lack in a snapshot of a half like this one."""
    name = f"{half.spec.kind}.{DROPPED}"
    return int(snapshot[name][0]) if name in snapshot else 0


def _read_by(half: Half) -> dict[str, NDArray[Any]]:
    kind, past = half.spec.kind, zip(half.spec.past_names(), half.rows(), strict=True)
    arrays = {f"{kind}.tokens": np.array(half.tokens, np.int64), **{f"{kind}.{name}": rows for name, rows in past}}
    if half.cache.dropped:
        arrays[f"{kind}.{DROPPED}"] = np.array([half.cache.dropped])
    return arrays

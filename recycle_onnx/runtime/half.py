"""One half of the model at work on one text: a graph, its cache, and buffers bound to both."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import INPUT_IDS, LOGITS, LOGITS_TO_KEEP, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.kv_cache import KVCache

Floats = NDArray[np.float32]
States = NDArray[np.floating[Any]]
"""Hidden states [rows, H], several taps side by side [rows, n·H], in the bundle's float type."""
STEP_ROWS = 16
"""Calls of up to this many tokens keep their buffers bound; longer ones are prefill, and are bound anew."""


class _Call:
    """A call's small buffers, bound once: ids [1, S], logits [1, keep, V], and hidden states in and out.

    A single tap comes straight into `hidden_out`; several come one by one, and are laid side by side after the run.
    """

    def __init__(self, half: Half, hidden_in: States | None, hidden_out: States, rows: int, keep: int) -> None:
        self.ids = np.zeros((1, rows), np.int64)
        self.logits = np.zeros((1, keep, half.spec.vocab_size), np.float32)
        self._keep = np.array(keep, np.int64)
        outputs = half.spec.state_outputs()
        width = half.spec.hidden_size
        self._taps = [np.zeros((rows, width), hidden_out.dtype) for _ in outputs] if len(outputs) > 1 else []
        self._hidden = (hidden_in, hidden_out)  # kept alive: OrtValues only alias them
        self.binding = half.session.io_binding()
        wrap = ort.OrtValue.ortvalue_from_numpy
        self.binding.bind_ortvalue_input(INPUT_IDS, wrap(self.ids))
        self.binding.bind_ortvalue_input(LOGITS_TO_KEEP, wrap(self._keep))
        if hidden_in is not None:
            self.binding.bind_ortvalue_input(half.spec.state_input, wrap(hidden_in[None]))
        self.binding.bind_ortvalue_output(LOGITS, wrap(self.logits))
        for name, array in zip(outputs, self._taps or [hidden_out], strict=True):
            self.binding.bind_ortvalue_output(name, wrap(array[None]))
        half.cache.bind(self.binding)

    def run(self, session: ort.InferenceSession, ids: list[int]) -> Floats:
        """Read `ids`; give the logits [keep, V]."""
        self.ids[0] = ids
        session.run_with_iobinding(self.binding)
        if self._taps:
            np.concatenate(self._taps, axis=1, out=self._hidden[1])
        logits: Floats = self.logits[0]
        return logits


class Half:
    """Runs the full model or the recyclable module, and remembers what it has read."""

    def __init__(
        self, session: ort.InferenceSession, spec: GraphSpec, limit: int, hidden_in: States | None = None
    ) -> None:
        """`limit` is the most tokens it can read; `hidden_in` is where a module's input lies by default.

        `tokens` are those it has read, a cache row each; `seconds` is what the latest `step` took; `runs` and
        `rows_read` count all runs, and the tokens they read.
        """
        self.session, self.spec = session, spec
        self.cache = KVCache(spec, limit)
        self.tokens: list[int] = []
        self.hidden: States = np.zeros((STEP_ROWS, spec.state_size), spec.float_type)
        self.runs = self.rows_read = 0
        self.seconds = 0.0
        self._hidden_in = hidden_in
        self._calls: dict[tuple[int, int, int], _Call] = {}

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return len(self.tokens)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` tokens in all; memory is taken as they come."""
        if self.cache.reserve(min(rows, self.cache.limit)):
            self._calls.clear()

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens, without copying."""
        del self.tokens[length:]
        self.cache.set_length(len(self.tokens))

    def step(self, ids: list[int], keep: int, hidden_in: States | None = None) -> Floats:
        """Read a few tokens; give the logits [keep, V] of the last `keep` of them.

        The hidden states of the tokens are the first rows of `hidden`; a module reads the first rows of `hidden_in`,
        by default those given at its making. All of them, and the logits, are overwritten by the next call.
        """
        rows, source = len(ids), self._hidden_in if hidden_in is None else hidden_in
        self._make_room(rows)
        key = (rows, keep, id(source))
        call = self._calls.get(key)
        if call is None:
            part = None if source is None else source[:rows]
            call = self._calls[key] = _Call(self, part, self.hidden[:rows], rows, keep)
        started = time.perf_counter()
        logits = self._run(call, ids)
        self.seconds = time.perf_counter() - started
        return logits

    def read(self, ids: list[int], hidden_in: States | None, hidden_out: States, keep: int = 1) -> Floats:
        """Read one piece of a prompt; give the logits [keep, V] of its last tokens.

        `hidden_in` (a module's input) and `hidden_out` are [S, state_size], contiguous.
        """
        self._make_room(len(ids))
        return self._run(_Call(self, hidden_in, hidden_out, len(ids), keep), ids)

    def restore(self, tokens: list[int], past: list[NDArray[Any]]) -> None:
        """Take over what another one had read: its tokens [n], and its keys and values [K, n, D]."""
        self.crop(0)
        self.reserve(len(tokens))
        self.cache.restore(past)
        self.tokens = list(tokens)

    def close(self) -> None:
        """Let go of session and buffers; only the counts are left."""
        self._calls.clear()
        self.cache.close()
        del self.session

    def _make_room(self, rows: int) -> None:
        length = self.length + rows
        if length > self.cache.limit:
            raise InputError(f"the text has {length} tokens; the model's context ends at {self.cache.limit}")
        self.reserve(length)

    def _run(self, call: _Call, ids: list[int]) -> Floats:
        """Whatever interrupts the run, `tokens` are those whose rows are there."""
        self.cache.set_length(self.length + len(ids))
        try:
            logits = call.run(self.session, ids)
            self.tokens += ids
        finally:
            self.cache.set_length(self.length)
        self.runs += 1
        self.rows_read += len(ids)
        return logits

"""One half of the model at work on one text: a graph, its cache, and buffers bound to both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_TO_KEEP, GraphSpec
from recycle_onnx.errors import InputError, NotFiniteError
from recycle_onnx.runtime.decoding.kv_cache import KVCache
from recycle_onnx.runtime.decoding.step_states import STEP_ROWS, States, StepStates
from recycle_onnx.runtime.ort.memory import HOST, Buffer, HostBuffer, input_memory, output_memory
from recycle_onnx.runtime.ort.native import run
from recycle_onnx.runtime.ort.providers import folds_defaults

Floats = NDArray[np.float32]
INT8_ROWS, INT8_SCORES = 128, 1 << 18
"""Most tokens of a run over caches of integers, and most scores of a query head: they are written out, several times
over, for one KV head after the other. Behind 1024 tokens runs of 128 took 0.97 of the time that float32 caches take,
runs of 64 0.99 and of 32 1.11; behind 4096 tokens, of 64 0.92 and of 128 1.00 (base of 135 M parameters)."""
__all__ = ["STEP_ROWS", "Floats", "Half", "OtherSession", "States"]


class _Call:
    """The small buffers of one call, bound once: ids [1, S], logits [1, keep, V], and hidden states in and out.

    Ids, mask and logits are on the host. What a session wants to read on a device is copied there when it is bound,
    and so it is bound anew for every run. A single tap comes straight into `hidden_out`; several come one by one, and
    are laid side by side after the run.
    """

    def __init__(
        self,
        half: Half,
        session: ort.InferenceSession,
        hidden_in: Buffer | None,
        hidden_out: Buffer,
        rows: int,
        keep: int,
    ) -> None:
        self.ids = np.zeros((1, rows), np.int64)
        self._keep = np.array(keep, np.int64)
        width = half.spec.places * half.spec.vocab_size
        logits = np.zeros((1, rows if half.always_all else keep, width), np.float32)
        self.logits: Floats = logits[0, -keep:]
        self._cache, self._hidden_in, self._hidden_out = half.cache, hidden_in, hidden_out  # kept alive
        self.binding = session.io_binding()
        self._inputs = self._bind_inputs(half, hidden_in)
        self.binding.bind_ortvalue_output(LOGITS, ort.OrtValue.ortvalue_from_numpy(logits))
        self._taps = self._bind_outputs(half, hidden_out, rows)
        half.cache.bind(self.binding)
        self._copies_mask = not half.reads[ATTENTION_MASK].is_host

    def _bind_inputs(self, half: Half, hidden_in: Buffer | None) -> list[tuple[str, ort.OrtValue]]:
        """Give those that are to be bound anew for each run."""
        wrap = ort.OrtValue.ortvalue_from_numpy
        if not half.always_all:
            self.binding.bind_ortvalue_input(LOGITS_TO_KEEP, wrap(self._keep))
        inputs = {INPUT_IDS: wrap(self.ids)}
        if hidden_in is not None:
            inputs[half.spec.state_input] = hidden_in.value
        for name, value in inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        return [(name, value) for name, value in inputs.items() if not half.reads[name].is_host and _is_host(value)]

    def _bind_outputs(self, half: Half, hidden_out: Buffer, rows: int) -> list[States]:
        """Bind logits, hidden states and present; return the arrays of several taps, to be joined after the run."""
        outputs, wrap = half.spec.state_outputs(), ort.OrtValue.ortvalue_from_numpy
        if len(outputs) == 1:
            self.binding.bind_ortvalue_output(outputs[0], hidden_out.value)
            return []
        taps: list[States] = [np.zeros((1, rows, half.spec.hidden_size), half.spec.float_type) for _ in outputs]
        for name, array in zip(outputs, taps, strict=True):
            self.binding.bind_ortvalue_output(name, wrap(array))
        return taps

    def run(self, session: ort.InferenceSession, ids: list[int]) -> Floats:
        """Read `ids`; return the logits [keep, V]."""
        self.ids[0] = ids
        for name, value in self._inputs:
            self.binding.bind_ortvalue_input(name, value)
        if self._copies_mask:
            self._cache.bind_mask(self.binding)
        run(session, self.binding)
        if self._taps:
            np.concatenate(self._taps, axis=2, out=self._hidden_out.read())
        return self.logits


Calls = dict[tuple[int, int, int], _Call]
"""Bindings that are made once a shape, and used again."""


@dataclass(eq=False)
class OtherSession:
    """A session with fewer threads, and what halves have bound to it.

    Its owner alone keeps it: a half holds it while a step runs, so that texts that wait for their next step keep
    neither session nor bindings alive.
    """

    session: ort.InferenceSession
    calls: WeakKeyDictionary[Half, Calls] = field(default_factory=WeakKeyDictionary)


class Half:
    """A runner of the full model or of the recyclable module, which remembers what it has read."""

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        limit: int,
        upstream: StepStates | None = None,
        tokens: list[int] | None = None,
    ) -> None:
        """Bind a session to a cache; `limit` is the most tokens it can read.

        A module's input is by default the latest of `upstream`. `tokens` are those that were read, a cache row each:
        whoever passes the list shortens it to make this half forget rows. `states` and `seconds` are the latest
        `step`'s; `runs` and `rows_read` count all runs and the tokens they read. `by_place` [keep, places, V] are the
        latest run's logits, of which a run returns the first place's. `reads` and `writes` say where the
        session has its inputs and outputs. With `always_all` the session gives logits for every row, and takes other
        defaults of optional inputs for constants too.
        """
        self.session, self.spec = session, spec
        self.reads, self.writes = input_memory(session), output_memory(session)
        self.always_all = folds_defaults(session)
        self.cache = KVCache(spec, limit, self.reads, drops_rows=not self.always_all)
        self.tokens: list[int] = [] if tokens is None else tokens
        self.runs = self.rows_read = 0
        self.by_place: Floats = np.zeros((0, spec.places, spec.vocab_size), np.float32)
        self.seconds = 0.0
        self._upstream = upstream
        self._fewer: ref[OtherSession] | None = None
        self._calls: Calls = {}
        outputs = spec.state_outputs()
        made_in = self.writes[outputs[0]] if len(outputs) == 1 else HOST  # several are laid side by side on the host
        self.states = StepStates(spec.state_size, spec.float_type, made_in)
        if upstream is not None:
            upstream.share(self.reads[spec.state_input])

    @property
    def hidden(self) -> States:
        """The latest `step`'s hidden states [rows, state_size], its tokens' first; room for `STEP_ROWS`."""
        return self.states.on_host()

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return len(self.tokens)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` tokens in all, before they come; memory is taken as they come.

        Buffers of integers grow with the text instead: attention over integers computes with all of their rows.
        """
        if self.spec.cache_type is None:
            self._begin_anew()
            self._rebind(self.cache.reserve, min(rows, self.cache.limit), self.length)

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens, without copying; see `can_go_on`."""
        del self.tokens[length:]

    def can_go_on(self, length: int) -> bool:
        """Tell whether, behind the first `length` tokens, there are all rows that the next one sees."""
        return length == 0 or self.cache.has_enough(length)

    def step_on(self, fewer: OtherSession | None) -> None:
        """Have steps run on another session of this graph while its owner keeps it; None for the own one.

        Text and caches stay. Longer runs, of prompts, stay on the own session: they gain from every core's share.
        """
        if fewer is not self._other():
            self._forget_bindings()
            self._fewer = None if fewer is None else ref(fewer)

    def _other(self) -> OtherSession | None:
        return None if self._fewer is None else self._fewer()

    def _forget_bindings(self) -> None:
        self._calls.clear()
        if (other := self._other()) is not None:
            other.calls.pop(self, None)

    def rows(self) -> list[NDArray[Any]]:
        """Give keys and values [K, n, D] of the tokens read, in the contract's order; on the host, aliases.

        Layers with a window may have `cache.dropped` rows, those of the first tokens.
        """
        self._begin_anew()
        return self.cache.rows(self.length)

    def skip(self, ids: list[int]) -> None:
        """Give tokens their rows without reading them: what the rows hold is unspecified, and no later row sees it."""
        self._check_fits(len(ids))
        self._rebind(self.cache.pass_over, self.length + len(ids))
        self.tokens += ids

    def leave_out(self) -> None:
        """Take all tokens read for read, whatever became of their rows: no later row may see them."""
        self._rebind(self.cache.pass_over, self.length)

    def step(self, ids: list[int], keep: int, hidden_in: States | None = None) -> Floats:
        """Read a few tokens; give the logits [keep, V] of the last `keep` of them.

        The hidden states of the tokens are the first rows of `hidden`; a module reads the first rows of `hidden_in`,
        by default the latest of `upstream`. All of them, and the logits, are overwritten by the next call.
        """
        rows, other = len(ids), self._other()
        self._make_room(rows)
        session, calls = self.session, self._calls
        if other is not None:
            session, calls = other.session, other.calls.setdefault(self, {})
        hidden = self._upstream_states(rows) if hidden_in is None else hidden_in
        key = (rows, keep, id(hidden))
        call = calls.get(key)
        if call is None:
            made = _Call(self, session, _prefix(hidden, rows), self.states.buffer(rows), rows, keep)
            call = calls[key] = made
        started = time.perf_counter()
        logits = self._run(call, session, ids)
        self.seconds = time.perf_counter() - started
        self.states.written(rows)
        return logits

    def read(self, ids: list[int], hidden_in: States | None, hidden_out: States, keep: int = 1) -> Floats:
        """Read one piece of a prompt; give the logits [keep, V] of its last tokens.

        `hidden_in` (a module's input) and `hidden_out` are [S, state_size], contiguous.
        """
        self._make_room(len(ids))
        kept: list[Floats] = []
        start = 0
        while start < len(ids):
            rows = slice(start, min(start + self._most_rows(), len(ids)))
            states = None if hidden_in is None else hidden_in[rows]
            wanted = min(keep - (len(ids) - rows.stop), rows.stop - start)  # of these, the last ones
            logits = self._read_run(ids[rows], states, hidden_out[rows], max(1, wanted))
            if wanted > 0:
                kept.append(logits)
            start = rows.stop
        return kept[0] if len(kept) == 1 else np.concatenate(kept)

    def _most_rows(self) -> int:
        """Return how many tokens a run may have: all, or as many as their scores over integers take bounded memory."""
        if self.spec.cache_type is None:
            return sys.maxsize
        return min(INT8_ROWS, INT8_SCORES // max(1, self.length) + 1)

    def _read_run(self, ids: list[int], hidden_in: States | None, hidden_out: States, keep: int) -> Floats:
        hidden, made = _prefix(hidden_in, len(ids)), HostBuffer(hidden_out[None])
        return self._run(_Call(self, self.session, hidden, made, len(ids), keep), self.session, ids)

    def restore(self, tokens: list[int], past: list[NDArray[Any]], start: int = 0, dropped: int = 0) -> None:
        """Take over what another one had read behind `start` rows: its tokens [n], and keys and values [K, n, D].

        Where `start` is 0, those of layers with a window may be [K, n - dropped, D].
        """
        self.crop(start)
        self._check_fits(len(tokens))
        self._rebind(self.cache.restore, past, start + len(tokens), start, dropped)
        self.tokens += tokens

    def close(self) -> None:
        """Let go of session and buffers; only the counts are left."""
        self._forget_bindings()
        self.cache.close()
        del self.session

    def _upstream_states(self, rows: int) -> States | Buffer | None:
        """Return the latest states of the half upstream, on the device where both can have it there."""
        return None if self._upstream is None else self._upstream.on_device(rows) or self._upstream.on_host()

    def _make_room(self, rows: int) -> None:
        self._check_fits(rows)
        self._begin_anew()
        self._rebind(self.cache.make_room, self.length + rows, self.length)

    def _begin_anew(self) -> None:
        """Let a text that begins have rows from its first token on."""
        if not self.tokens:
            self._rebind(self.cache.forget)

    def _rebind(self, change: Callable[..., bool], *arguments: Any) -> None:
        """Change the cache, and forget all bindings where what is bound has changed, or an error leaves that open."""
        changed = True
        try:
            changed = change(*arguments)
        finally:
            if changed:
                self._forget_bindings()

    def _check_fits(self, rows: int) -> None:
        length = self.length + rows
        if length > self.cache.limit:
            raise InputError(f"the text has {length} tokens; the model's context ends at {self.cache.limit}")

    def _run(self, call: _Call, session: ort.InferenceSession, ids: list[int]) -> Floats:
        """Read `ids`; whatever interrupts the run, `tokens` are those whose rows are there, and are sound."""
        length = self.length + len(ids)
        self.cache.show(length)
        logits = call.run(session, ids)
        self._check_finite(logits, length)
        self.tokens += ids
        self.runs += 1
        self.rows_read += len(ids)
        self.by_place = logits.reshape(len(logits), self.spec.places, self.spec.vocab_size)
        return self.by_place[:, 0]

    def _check_finite(self, logits: Floats, length: int) -> None:
        """Refuse logits [keep, V], the last ones of a text of `length` tokens, that nothing can be chosen from.

        Hidden states that are no longer numbers show here too, and so does every later token: what is read anyway is
        all that has to be looked at. (The two passes take 7 µs for a vocabulary of 49 152.)
        """
        if np.isfinite(logits.max()) and np.isfinite(logits.min()):
            return
        row = int(np.flatnonzero(~np.isfinite(logits).all(-1))[0])
        half = "full model" if self.spec.kind == "full" else "module"
        cause = "the weights are probably damaged; export it again from sound ones"
        if self.spec.float_type == "float16":
            cause = "float16 ends at 65504, which this model's values probably exceed; export it with float32 ones"
        raise NotFiniteError(
            f"the {half}'s logits after token {length - len(logits) + row + 1} are not finite: {cause}"
        )


def _prefix(states: States | Buffer | None, rows: int) -> Buffer | None:
    return HostBuffer(states[None, :rows]) if isinstance(states, np.ndarray) else states


def _is_host(value: ort.OrtValue) -> bool:
    return bool(value.device_name() == "cpu")

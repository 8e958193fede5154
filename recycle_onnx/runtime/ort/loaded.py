"""What a loaded model holds: a session of each half, and the caches that use them, until it is closed."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.contract import GraphSpec
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.runtime.decoding.decoder import CHUNK, Decoder
from recycle_onnx.runtime.decoding.equal_rows import EqualRows
from recycle_onnx.runtime.decoding.fewer_threads import FewerThreads, Sessions
from recycle_onnx.runtime.ort.allocator import give_back
from recycle_onnx.runtime.ort.native import at_work, check_not_forked, keep_in_children

Specs = tuple[GraphSpec, GraphSpec | None]


class LoadedHalves:
    """Sessions of both halves, which serve any number of threads at once: what a run writes belongs to its caches."""

    def __init__(
        self,
        sessions: Sessions,
        specs: Specs,
        draft_ids: NDArray[np.int64] | None = None,
        fewer_threads: FewerThreads | None = None,
        equal_rows: EqualRows | None = None,
    ) -> None:
        """Take over the sessions, and with `fewer_threads` other ones for steps.

        `draft_ids` are the token ids of the module's own vocabulary, if it has one. `equal_rows` says whether layers of
        the full model with a window may drop rows; without it they do.
        """
        self.specs, self._draft_ids, self._fewer_threads = specs, draft_ids, fewer_threads
        self._equal_rows = equal_rows
        self._sessions: Sessions | None = sessions
        # Weak: caches are freed with the generation that used them, while the model stays.
        self._decoders: WeakSet[Decoder] = WeakSet()
        self._lock = threading.Lock()
        self._process = os.getpid()
        for session in sessions:
            keep_in_children(session)

    def decoder(self, context_length: int, chunk: int, *, module: bool) -> Decoder:
        """Make fresh caches, of the module too where there is one and it is asked for.

        Raises:
            RecycleError: closed, or made by another process, of which this one is a fork.
        """
        made = self._decoder(context_length, chunk, module=module)
        if (rows := self._equal_rows) is not None:
            made.full.cache.may_drop = lambda: rows.may_drop(lambda: self.trial_decoder(context_length))
        return made

    def trial_decoder(self, context_length: int) -> Decoder:
        """Make fresh caches of the full model for a trial: they ask for none before they drop rows.

        Raises:
            RecycleError: as `decoder`.
        """
        return self._decoder(context_length, CHUNK, module=False)

    def _decoder(self, context_length: int, chunk: int, *, module: bool) -> Decoder:
        self.check_process()
        with self._lock:
            full, recycler = self._loaded()
            sessions = (full, recycler if module else None)
            specs = (self.specs[0], self.specs[1] if module else None)
            made = Decoder(sessions, specs, context_length, chunk, self._draft_ids, self._fewer_threads)
            self._decoders.add(made)
            return made

    def check_own(self, decoder: Decoder) -> None:
        """Refuse caches that another model made: its keys and values mean nothing here.

        Raises:
            InputError: they are another model's.
            RecycleError: closed.
        """
        with self._lock:
            self._loaded()
            if decoder not in self._decoders:
                raise InputError("the decoder is another model's; expected one that this model's decoder(…) made")

    def _loaded(self) -> Sessions:
        if self._sessions is None:
            raise RecycleError("the model was closed; load it again")
        return self._sessions

    def check_process(self) -> None:
        """Refuse to be used in a forked child, before any lock is waited for.

        Raises:
            RecycleError: another process has made it.
        """
        check_not_forked(self._process)

    def close(self) -> None:
        """Wait for the steps in progress, then free sessions and caches, whoever still holds one.

        In a forked copy of the process there is nothing to free: the memory is the parent's.

        Raises:
            RecycleError: called from within a step.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            decoders = list(self._decoders)
            for decoder in decoders:
                decoder.exclusive.check_may_close()
            self._sessions = None
        for decoder in decoders:  # without the lock: whoever uses one now may ask for another, to be told
            with decoder.exclusive.close(), at_work():
                if decoder in self._decoders:
                    decoder.close()
                    self._decoders.discard(decoder)
        if self._fewer_threads is not None:
            self._fewer_threads.close()
        give_back()

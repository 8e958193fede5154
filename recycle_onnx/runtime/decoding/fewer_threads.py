"""Sessions with fewer threads over the same graphs, which steps run on while other programs want the cores.

ONNX Runtime gives a session its threads when it is loaded. So there are sessions with half as many, loaded once others
disturb the steps, and let go when nobody has done so for a while.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from threading import Lock, Thread

import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import RecycleError
from recycle_onnx.machine import cgroup, memory, processors
from recycle_onnx.machine.huge_pages import addresses_are_limited
from recycle_onnx.runtime.decoding.equal_threads import EqualThreads
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.decoding.thread_choice import ThreadChoice
from recycle_onnx.runtime.ort.native import EXIT_SECONDS, at_work, keep_in_children
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.sessions import Opener

Sessions = tuple[ort.InferenceSession, ort.InferenceSession | None]
PART_OF_FREE = 8
"""Without prepacked weights the sessions copy the weights: they may take an eighth of the memory that is free."""

logger = logging.getLogger(__name__)


class FewerThreads:
    """The other sessions of a model, and the choice between both, which all its texts share."""

    def __init__(self, bundle: Bundle, own: Sessions, opener: Opener, *, copies: bool) -> None:
        """Prepare for disturbances: nothing is loaded yet.

        `own` are the model's sessions, on the CPU; `opener` opens others. With `copies` these take as much memory
        as the bundle's weights, else next to none.
        """
        self._bundle, self._open, self._copies = bundle, opener, copies
        self._own: Sessions | None = own  # None once closed
        self._choice, self._lock = ThreadChoice(), Lock()
        self._sessions: Sessions | None = None
        self._loader: Thread | None = None

    @staticmethod
    def possible(own: Sessions) -> bool:
        """Tell whether sessions on the CPU have threads of their own, more than one, and there is room for others."""
        own_pool = own[0].get_session_options().use_per_session_threads
        return bool(own_pool) and _threads(own) != 1 and os.cpu_count() != 1 and not addresses_are_limited()

    def sessions(self) -> Sessions | None:
        """Return what the next step is to run on; None for the model's own sessions."""
        with self._lock:
            return self._sessions if self._choice.fewer else None

    def took(self, rows: int, length: int, seconds: float, *, fewer: bool) -> None:
        """Learn from a step on `rows` tokens, which made the text `length` tokens long."""
        with self._lock:
            self._choice.took(rows, length, seconds, time.perf_counter(), fewer=fewer)
            if not self._choice.wanted and self._sessions:
                self._sessions, self._loader, self._choice.available = None, None, False
            elif self._choice.wanted and self._loader is None:
                # A daemon, as others that run native code: `at_work` has the interpreter wait for it.
                self._loader = Thread(target=self._load, name="recycle-onnx: fewer threads", daemon=True)
                with suppress(RuntimeError):  # a process that may start no more threads keeps all of these
                    self._loader.start()

    def close(self) -> None:
        """Let go of all sessions, of the new ones once they are loaded if that has begun."""
        with self._lock:
            self._own, loader = None, self._loader
        if loader is not None and loader.ident is not None:
            loader.join(EXIT_SECONDS)
        with self._lock:
            self._sessions, self._choice = None, ThreadChoice()

    def _load(self) -> None:
        """Load the sessions; where they cannot be had, all steps run on all threads, and nothing is tried again."""
        with self._lock:
            own = self._own
        if own is None:
            return
        try:
            with at_work():
                sessions = self._opened(own)
        except (RecycleError, OSError, MemoryError) as error:
            logger.info("%s: no sessions with fewer threads (%s)", self._bundle.folder, error)
            return
        with self._lock:
            if sessions is not None and self._own is not None:
                self._sessions, self._choice.available = sessions, True

    def _opened(self, own: Sessions) -> Sessions | None:
        """Open the sessions; None where there is nothing to halve, too little memory, or other logits."""
        limits = cgroup.limits()
        threads = processors.find(limits).session_threads(_threads(own) or None)
        if threads == 1 or not self._fits(memory.find(limits)):
            return None
        kinds = self._bundle.manifest.kinds
        full, *module = [self._open(self._bundle, kind, CPU, threads // 2) for kind in kinds]
        fewer = (full, module[0] if module else None)
        for session in fewer:
            keep_in_children(session)
        graphs, context = self._bundle.manifest.graphs, self._bundle.manifest.context_length
        pairs = [
            (Half(one, graphs[kind], context), Half(other, graphs[kind], context))
            for kind, one, other in zip(kinds, own, fewer, strict=False)
            if one is not None and other is not None
        ]
        return fewer if EqualThreads(self._bundle, threads, threads // 2).known(pairs) else None

    def _fits(self, machine: memory.SystemMemory) -> bool:
        """Tell whether there is memory to spare for the sessions."""
        weights = sum(file.bytes for name, file in self._bundle.manifest.files.items() if name.endswith(".data"))
        return not self._copies or machine.free_bytes is None or PART_OF_FREE * weights <= machine.free_bytes


def _threads(sessions: Sessions) -> int:
    """Return the threads that sessions were asked to have; 0 is ONNX Runtime's own choice."""
    return int(sessions[0].get_session_options().intra_op_num_threads)

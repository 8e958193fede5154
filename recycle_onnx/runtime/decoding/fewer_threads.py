"""Sessions with fewer threads over the same graphs, which steps run on while other programs want the cores.

ONNX Runtime gives a session its threads when it is loaded. So there are sessions with half as many, loaded once others
disturb the steps, and let go when nobody has done so for a while.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from threading import Event, Lock, Thread
from weakref import ref

import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import RecycleError
from recycle_onnx.machine import cgroup, memory, processors
from recycle_onnx.machine.huge_pages import addresses_are_limited
from recycle_onnx.runtime.decoding.equal_threads import EqualThreads
from recycle_onnx.runtime.decoding.half import Half, OtherSession
from recycle_onnx.runtime.decoding.thread_choice import ThreadChoice
from recycle_onnx.runtime.ort.allocator import give_back
from recycle_onnx.runtime.ort.native import Interrupt, at_work, is_interrupted, keep_in_children
from recycle_onnx.runtime.ort.prepacked import open_again, open_prepacked
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.sessions import Opener

Sessions = tuple[ort.InferenceSession, ort.InferenceSession | None]
Others = tuple[OtherSession, OtherSession | None]
LOOK_SECONDS = 5.0
"""How often a thread looks whether the sessions are still wanted, while there are some."""
PART_OF_FREE = 8
"""Without prepacked weights the sessions copy the weights: they may take an eighth of the memory that is free."""

logger = logging.getLogger(__name__)


class FewerThreads:
    """The other sessions of a model, and the choice between both, which all its texts share."""

    def __init__(self, bundle: Bundle, own: Sessions, opener: Opener) -> None:
        """Prepare for disturbances: nothing is loaded yet.

        `own` are the model's sessions, on the CPU, and `opener` is what opened them. Others take as much memory as the
        bundle's weights, but next to none where they map prepacked ones; where these are not in the cache, there are
        no others.
        """
        self._bundle, self._threads = bundle, _threads(own)
        self._open = open_again if opener is open_prepacked else opener
        self._own: Sessions | None = own  # None once closed
        self._choice, self._lock = ThreadChoice(), Lock()
        self._sessions: Others | None = None
        self._interrupt, self._closed = Interrupt(), Event()  # for the loader, and for who waits to let go
        self._loader: Thread | None = None

    @staticmethod
    def possible(own: Sessions) -> bool:
        """Tell whether sessions on the CPU have threads of their own, more than one, and there is room for others."""
        own_pool = own[0].get_session_options().use_per_session_threads
        return bool(own_pool) and _threads(own) != 1 and os.cpu_count() != 1 and not addresses_are_limited()

    def sessions(self) -> Others | None:
        """Return what the next step is to run on; None for the model's own sessions."""
        with self._lock:
            return self._sessions if self._choice.fewer else None

    def took(self, rows: int, length: int, seconds: float, *, fewer: bool) -> None:
        """Learn from a step on `rows` tokens, which made the text `length` tokens long."""
        with self._lock:
            self._choice.took(rows, length, seconds, time.perf_counter(), fewer=fewer)
            if self._choice.wanted and self._loader is None:
                # A daemon, as others that run native code: `at_work` has the interpreter wait for it.
                self._loader = Thread(target=self._load, name="recycle-onnx: fewer threads", daemon=True)
                with suppress(RuntimeError):  # a process that may start no more threads keeps all of these
                    self._loader.start()

    def let_go_if_unused(self, now: float) -> bool:
        """Let go of the sessions if at `now` nobody has disturbed for long; tell whether there are none.

        Steps that still run on them end first; until then these alone keep them.
        """
        with self._lock:
            if self._sessions is None:
                return True
            if not self._choice.is_unused(now):
                return False
            sessions, self._sessions, self._loader = self._sessions, None, None
        with at_work():
            del sessions
            give_back()
        return True

    def close(self) -> None:
        """Let go of all sessions; those that are being loaded now are dropped once ONNX Runtime gives them."""
        self._interrupt.set()
        self._closed.set()
        with self._lock:
            self._own = self._sessions = None
            self._choice = ThreadChoice()

    def _load(self) -> None:
        """Load the sessions; where they cannot be had, all steps run on all threads, and nothing is tried again."""
        with self._interrupt.of_this_thread(), at_work():
            try:
                sessions = self._opened()
            except (RecycleError, OSError, MemoryError) as error:
                logger.info("%s: no sessions with fewer threads (%s)", self._bundle.folder, error)
                sessions = None
            give_back()  # what the trial took
            with suppress(RuntimeError), self._lock:  # no more threads: then none to let go of them later
                if sessions is not None and self._own is not None:
                    Thread(target=_let_go_in_time, args=(ref(self), self._closed), daemon=True).start()
                    self._sessions, self._choice.available = sessions, True
                    return
            del sessions
            give_back()

    def _opened(self) -> Others | None:
        """Open the sessions; None where nothing is to be halved, memory is short, logits differ, or nobody waits."""
        limits = cgroup.limits()
        threads = processors.find(limits).session_threads(self._threads or None)
        if threads == 1 or not self._fits(memory.find(limits)):
            return None
        others = []
        for kind in self._bundle.manifest.kinds:
            if is_interrupted():  # the model was closed, or the interpreter is about to end
                return None
            others.append(OtherSession(self._open(self._bundle, kind, CPU, threads // 2)))
            keep_in_children(others[-1].session)
        with self._lock:
            own = self._own
        if own is None or not EqualThreads(self._bundle, threads, threads // 2).known(self._pairs(own, others)):
            return None
        return others[0], others[1] if len(others) > 1 else None

    def _pairs(self, own: Sessions, others: list[OtherSession]) -> list[tuple[Half, Half]]:
        """Return fresh halves of both sessions of each graph."""
        graphs, context = self._bundle.manifest.graphs, self._bundle.manifest.context_length
        return [
            (Half(one, graphs[kind], context), Half(other.session, graphs[kind], context))
            for kind, one, other in zip(self._bundle.manifest.kinds, own, others, strict=False)
            if one is not None
        ]

    def _fits(self, machine: memory.SystemMemory) -> bool:
        """Tell whether there is memory to spare for the sessions."""
        weights = sum(file.bytes for name, file in self._bundle.manifest.files.items() if name.endswith(".data"))
        return self._open is open_again or machine.free_bytes is None or PART_OF_FREE * weights <= machine.free_bytes


def _let_go_in_time(whose: ref[FewerThreads], closed: Event) -> None:
    """Wait until the sessions are no longer wanted, whether or not texts are written, and let go of them.

    It ends with the model too, whether that is closed or forgotten.
    """
    while not closed.wait(LOOK_SECONDS):
        threads = whose()
        if threads is None or threads.let_go_if_unused(time.perf_counter()):
            return
        del threads


def _threads(sessions: Sessions) -> int:
    """Return the threads that sessions were asked to have; 0 is ONNX Runtime's own choice."""
    return int(sessions[0].get_session_options().intra_op_num_threads)

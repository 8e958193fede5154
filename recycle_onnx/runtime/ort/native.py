"""Native code at work, thread by thread: it can be interrupted, and it is over before the interpreter ends.

Python ends a daemon thread where it asks for the interpreter's lock. Inside ONNX Runtime or a tokenizer that aborts the
process. So an exit handler interrupts the runs in progress and waits until all native code is over; threads that come
back from it, or want to begin, are held for the rest of the process's life.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from weakref import WeakSet

import onnxruntime as ort

from recycle_onnx.errors import RecycleError

MOST_OF_A_REASON = 300
"""Characters of what ONNX Runtime says."""
EXIT_SECONDS = 10.0
"""What loading a model or compiling a schema may still take at exit: neither can be interrupted."""


class Interrupted(RecycleError):  # noqa: N818 -- what somebody wanted is no error
    """An exception in a thread whose run in progress somebody has ended."""


class Interrupt:
    """A switch that ends the runs of a thread: the one in progress, between two nodes, and all that would follow."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        # What counts where it is not set; onnxruntime's Python asks for it in every run, and a question without an
        # answer costs it 94 microseconds, a third of a step of the smallest models.
        self.options.add_run_config_entry("gpu_graph_id", "0")

    def set(self) -> None:
        """End the runs of the thread; from any thread, at any time."""
        self.options.terminate = True

    @property
    def is_set(self) -> bool:
        """Whether somebody has done so."""
        return bool(self.options.terminate)

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Stand for all that this thread runs within a block."""
        before, _thread.interrupt = _thread.interrupt, self
        try:
            yield
        finally:
            _thread.interrupt = before


class _Thread(threading.local):
    """The state of a thread: how deep it is in `at_work`, and who interrupts it."""

    def __init__(self) -> None:
        self.depth = 0
        self.interrupt = Interrupt()


class _Process:
    """The threads in native code, and whether the interpreter is about to end."""

    def __init__(self) -> None:
        self.exiting = False
        self.working: dict[int, Interrupt] = {}
        self.changed = threading.Condition(threading.Lock())

    def enter(self) -> None:
        """Count this thread among those in native code."""
        with self.changed:
            if not self._holds_this_thread():
                self.working[threading.get_ident()] = _thread.interrupt
                return
        _hold()

    def leave(self) -> None:
        """Remove this thread from those in native code."""
        with self.changed:
            self.working.pop(threading.get_ident(), None)
            self.changed.notify_all()
            if not self._holds_this_thread():
                return
        _hold()

    def end(self) -> None:
        """Interrupt the others, and wait until they are out of native code."""
        with self.changed:
            self.exiting = True
            for interrupt in self._others():
                interrupt.set()
            self.changed.wait_for(lambda: not self._others(), EXIT_SECONDS)

    def _others(self) -> list[Interrupt]:
        return [interrupt for thread, interrupt in self.working.items() if thread != threading.get_ident()]

    def _holds_this_thread(self) -> bool:
        return self.exiting and threading.current_thread() is not threading.main_thread()


_process, _thread = _Process(), _Thread()
_sessions: WeakSet[ort.InferenceSession] = WeakSet()


@contextmanager
def at_work() -> Iterator[None]:
    """Mark a block in which this thread runs native code; blocks may be nested."""
    if _thread.depth == 0:
        _process.enter()
    _thread.depth += 1
    try:
        yield
    finally:
        _thread.depth -= 1
        if _thread.depth == 0:
            _process.leave()


def run(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Run a graph, until it ends or this thread is interrupted.

    Raises:
        Interrupted: it was; what the run has written is not whole.
        RecycleError: an operator fails, on values that its graph's author did not expect or for want of memory.
    """
    interrupt = _thread.interrupt
    with at_work():
        try:
            session.run_with_iobinding(binding, interrupt.options)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            if interrupt.is_set:
                raise Interrupted("the run was interrupted") from error
            reason = shorten(str(error), MOST_OF_A_REASON, placeholder=" …")
            raise RecycleError(f"ONNX Runtime cannot run the graph ({reason})") from error


def is_interrupted() -> bool:
    """Tell whether somebody has ended what this thread does."""
    return _thread.interrupt.is_set


def check_not_forked(process: int) -> None:
    """Refuse what another process has made: its threads, and locks that they held, were not copied with its memory.

    Raises:
        RecycleError: this process is a fork of `process`.
    """
    if process != os.getpid():
        raise RecycleError(
            "the model was loaded before this process was forked, and cannot be used in the copy; load it here, or "
            "start processes with the method 'spawn'"
        )


def keep_in_children(session: ort.InferenceSession | None) -> None:
    """Have forked children never free it: to do that is to wait for its threads, which they have not."""
    if session is not None:
        _sessions.add(session)


def _hold() -> None:
    """Wait for ever, without ever asking for the interpreter's lock again."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _begin_anew() -> None:
    """Forget other threads in a forked child: none but this one was copied."""
    global _process
    _process = _Process()
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


atexit.register(lambda: _process.end())  # whichever it is then; after the import of ONNX Runtime, so before its own end
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

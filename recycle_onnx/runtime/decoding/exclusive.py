"""Caches serve one thread at a time: who comes second is told so, and nothing is corrupted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.ort.native import check_not_forked


class BusyError(RecycleError):
    """An error for a thread that asks for something which another one is using."""


class Exclusive:
    """A right to use something that threads may ask for, but do not wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._user: int | None = None  # the thread's number, while one uses it
        self._closed = False  # for good: nobody opens it again
        self._process = os.getpid()  # a fork shares the sessions' threads only in name

    @contextmanager
    def use(self) -> Iterator[None]:
        """Use it for a block.

        Raises:
            BusyError: another thread uses it now.
            RecycleError: it was closed, or this process is a fork of the one it is from.
        """
        check_not_forked(self._process)
        free = self._lock.acquire(blocking=False)
        try:
            if self._closed:
                raise RecycleError("the model was closed; load it again")
            if not free:
                raise BusyError(
                    "another thread is using this generation or conversation; "
                    "give each thread its own: model.stream(…), model.conversation(…) or chat.fork()"
                )
            self._user = threading.get_ident()
            yield
        finally:
            if free:
                self._user = None
                self._lock.release()

    def check_may_close(self) -> None:
        """Refuse the very thread that uses it: it would wait for itself.

        Raises:
            RecycleError: called from within `use`.
        """
        if self._user == threading.get_ident():
            raise RecycleError(
                "closed from within one of its own steps (a callback or a processor); cancel the generation there, "
                "and close the model when it has ended"
            )

    @contextmanager
    def close(self) -> Iterator[None]:
        """Wait until nobody uses it; afterwards nobody may."""
        self._closed = True
        with self._lock:
            yield

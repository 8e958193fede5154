"""Ctrl-C, or SIGTERM, that waits for the step in progress, so that what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Interruption:
    """A block within which the first Ctrl-C only sets `requested`. A second one no longer waits, unless `patient`.

    (Launchers pass a terminal's Ctrl-C on to processes that have had it already: those are to be patient, and
    SIGTERM is how a launcher ends those that wait for a process that is lost.)
    """

    def __init__(self, *, patient: bool) -> None:
        self.requested, self._patient = False, patient
        self._signals = (signal.SIGINT,) if patient else (signal.SIGINT, signal.SIGTERM)
        self._before: dict[signal.Signals, Any] = {}  # handlers to put back afterwards

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Count a KeyboardInterrupt within the block as a Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            self.requested = True

    def _note(self, *_: object) -> None:
        if self.requested and not self._patient:
            raise KeyboardInterrupt
        self.requested = True

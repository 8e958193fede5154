"""Whether steps run on all threads or on fewer, by the time they take: other programs may want the cores too.

Threads share each product and wait for each other. Where another program has one of the cores, all wait for the thread
that lost it, and fewer threads may be faster. Where many programs share the cores they are slower, for more threads get
more of them. So both are measured.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

WINDOW_SECONDS, WINDOW_STEPS = 0.1, 2
"""The least that a window has of steps: a scheduler's turns take some 3 ms, so that 0.1 s have a share of many."""
SLOW = 1.25
"""A window is slow where its steps take so much longer than the fastest. Quiet ones took 1.04 to 1.1, those beside one
busy program 1.3 to 1.8, also where the fastest step was itself disturbed."""
SLOW_WINDOWS = 2
"""In a row: a single one may be a hiccup."""
COMPARED = 2
"""Windows of a trial that count for each number of threads. The first one after an exchange does not: it takes the
scheduler some 0.1 s to move a thread away from a busy program's core, which then has twice the step time."""
GAIN = 0.95
"""The other number of threads must take less than so much of the time to be chosen; nearly equal ones never alternate.
"""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 8.0
"""Seconds between two trials: twice as many after each one. A trial runs for three windows on what may be slower."""
QUIET_SECONDS = 2.0
"""After so long on all threads without a slow window, the next disturbance is answered at once."""
KEEP_SECONDS = 60.0
"""After so long, the sessions with fewer threads are no longer wanted."""
FORGET = 1.001
"""What the fastest step grows by with each step: later ones of a text, and of a processor that gets warm, are slower.
"""


@dataclass(frozen=True)
class Window:
    """Some steps in a row on one number of threads: their time by that of the fastest ones, and when they ended."""

    slowdown: float
    end: float


Windows = Generator[bool, Window, None]
Trial = Generator[bool, Window, bool]


class ThreadChoice:
    """A choice between all threads and fewer, window by window.

    `fewer` is what the next step is to run on. `wanted` tells whoever has the sessions to have those with fewer threads
    ready, and `available` is to be set once they are. Nothing here looks at a clock.
    """

    def __init__(self) -> None:
        self.wanted = self.available = False
        self._fastest: dict[tuple[int, int], float] = {}
        self._pause, self._now, self._disturbed = FIRST_PAUSE, -math.inf, -math.inf
        self._start_over()

    def took(self, rows: int, length: int, seconds: float, end: float, *, fewer: bool) -> None:
        """Learn from a step on `rows` tokens of a text that is now `length` long: it took `seconds`, until `end`.

        One that did not run on this window's threads, as those of other texts may at its beginning, counts for nothing.
        """
        if fewer != self.fewer:
            return
        try:
            self._count((rows, length.bit_length()), seconds, end)
        except BaseException:  # Ctrl-C in here ends the generator, which nobody could ask again
            self._start_over()
            raise

    def is_unused(self, now: float) -> bool:
        """Tell whether nobody has disturbed for so long that the sessions with fewer threads are to be let go.

        Where they are, the next step runs on all threads.
        """
        if now - self._disturbed <= KEEP_SECONDS:
            return False
        self.wanted = self.available = False
        self._start_over()
        return True

    def _count(self, kind: tuple[int, int], seconds: float, end: float) -> None:
        """Count a step for this window; where it is the last one, begin the next."""
        self._seconds += seconds
        self._units += self._unit(kind, seconds)
        self._steps += 1
        if self._seconds >= WINDOW_SECONDS and self._steps >= WINDOW_STEPS:
            self._now = end
            self._begin(self._windows.send(Window(self._seconds / self._units, end)))

    def _start_over(self) -> None:
        """Begin on all threads, without a trial."""
        self._trying = False
        self._windows = self._all_windows()
        self._begin(next(self._windows))

    def _begin(self, fewer: bool) -> None:
        self.fewer = fewer
        self._seconds, self._units, self._steps = 0.0, 0.0, 0

    def _unit(self, kind: tuple[int, int], seconds: float) -> float:
        """Return the time of the fastest step of a kind, on whatever threads: what windows are compared by.

        Within a trial it stays as it was, or both sides would be measured by different ones.
        """
        if kind not in self._fastest or not self._trying:
            self._fastest[kind] = min(seconds, FORGET * self._fastest.get(kind, seconds))
        return self._fastest[kind]

    def _all_windows(self) -> Windows:
        while True:
            yield from self._on_all_threads()
            yield from self._on_fewer()

    def _on_all_threads(self) -> Windows:
        """Run on all threads until they are slow, and fewer are better."""
        slow, earliest = 0, -math.inf
        while True:
            window = yield False
            slow = slow + 1 if window.slowdown > SLOW else 0
            if slow >= SLOW_WINDOWS:
                self.wanted, self._disturbed = True, window.end
            quiet = window.end - self._disturbed
            if quiet > QUIET_SECONDS:
                self._pause, earliest = FIRST_PAUSE, -math.inf
            if quiet > KEEP_SECONDS:
                self.wanted = False
            if slow >= SLOW_WINDOWS and self.available and window.end >= earliest:
                if (yield from self._trial(fewer=True)):
                    return
                earliest = self._after_a_pause()

    def _on_fewer(self) -> Windows:
        """Run on fewer threads until all are better again."""
        due = self._after_a_pause()
        while True:
            window = yield True
            self._disturbed = window.end
            if window.end >= due:
                if (yield from self._trial(fewer=False)):
                    return
                due = self._after_a_pause()

    def _after_a_pause(self) -> float:
        """Return when the next trial may begin; the pause after that one is longer."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return self._now + pause

    def _trial(self, *, fewer: bool) -> Trial:
        """Run some windows on the present number of threads, then on the other one; tell whether the other is better.

        The first one on the other does not count.
        """
        self._trying = True
        present = yield from self._several(not fewer)
        yield fewer
        other = yield from self._several(fewer)
        self._trying = False
        return other < GAIN * present

    def _several(self, fewer: bool) -> Generator[bool, Window, float]:
        """Run the windows of one number of threads that count; return the sum of their slowdowns."""
        total = 0.0
        for _ in range(COMPARED):
            window = yield fewer
            total += window.slowdown
        return total

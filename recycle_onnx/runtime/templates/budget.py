"""What a chat template may spend: steps, processor time, and memory.

A template comes from the net and is a program. Jinja's sandbox keeps it away from Python, and this from taking the
machine: every loop, call, filter and operator reports here, and what would grow asks first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

STEPS = 1_000_000
"""Nodes of the syntax tree that are run, some tenths of a second; a message of a conversation takes 300 or so."""
STEPS_A_BYTE = 16
"""More steps for longer messages: filters go over every character several times."""
SECONDS = 1.5
"""Of this thread's processor time: other threads and processes do not count. Ordinary templates take milliseconds."""
LARGEST = 2 << 20
"""Bytes of one value, with everything in it."""
LARGEST_A_BYTE = 32
"""What a text takes when it is split into words, each of them an object."""
ROOM = 16 << 20
"""Bytes of all values that are made, also of those that are gone again."""
ROOM_A_BYTE = 64
"""More room for longer messages, which are copied at every filter and concatenation."""
LARGEST_BITS = 10_000
"""Of a whole number; Python prints no more than 4300 digits."""
DEEPEST = 100
"""Lists in lists, and iterators over iterators."""
SMALL = 64
"""Bytes that count for a value without parts, and for each part of a container."""
STEPS_BETWEEN_LOOKS = 256
"""At the clock: a step takes a millisecond at most, where it compares the largest values."""

CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class OverBudgetError(SecurityError):
    """An error for a template that takes more than it may."""


class RenderBudget:
    """The steps, time and memory of one rendering. Longer messages get more of everything but time."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        self._weights: dict[int, tuple[object, int, int]] = {}  # by id, with the value so that its id stays its own
        self._steps = self._room = self._largest = sys.maxsize
        self._look, self._reading = 0, True
        self._end = time.thread_time() + SECONDS
        bytes_given = sum(self._measure(value, keep=True)[0] for value in inputs)
        self._reading = False
        self._steps = STEPS + STEPS_A_BYTE * bytes_given
        self._look = self._steps - STEPS_BETWEEN_LOOKS
        self._room = ROOM + ROOM_A_BYTE * bytes_given
        self._largest = LARGEST + LARGEST_A_BYTE * bytes_given

    def spend(self, steps: int) -> None:
        """Count steps against the budget.

        Raises:
            OverBudgetError: there are no more, or the time is up.
        """
        self._steps -= steps
        if self._steps < self._look:
            self._look = self._steps - STEPS_BETWEEN_LOOKS
            if self._steps < 0:
                raise OverBudgetError("it takes more steps than a chat template may")
            if time.thread_time() > self._end:
                raise OverBudgetError(f"it takes longer than the {SECONDS:g} s that a chat template may")

    def expect(self, size: int, *, parts: bool = False) -> None:
        """Ask before `size` bytes are made; in many `parts`, or as one value.

        Raises:
            OverBudgetError: there is no room for them.
        """
        if size > (self._room if parts else min(self._room, self._largest)):
            raise OverBudgetError("it makes a value that is larger than a chat template may")

    def made(self, value: Any, *, deep: bool = False, depth: int = 0) -> Any:
        """Count a value that was just made, its parts too if they are new (`deep`); iterators count as they go.

        `depth` says how many iterators a new one goes over.

        Raises:
            OverBudgetError: there is no room for it.
        """
        if isinstance(value, str):
            size = sys.getsizeof(value)
            self.expect(size)
            self._room -= size
        elif isinstance(value, CONTAINERS):
            weight, _ = self._measure(value, keep=True)
            self._room -= weight if deep else SMALL * (1 + len(value))
            self.expect(0)
        elif isinstance(value, Iterator) and not isinstance(value, LoopContext | CountedIterator):
            if depth >= DEEPEST:
                raise OverBudgetError("it goes over more filters than a chat template may")
            return CountedIterator(value, self, depth + 1)
        else:
            self._room -= SMALL
            self.expect(0)
        return value

    def weight(self, value: object) -> int:
        """Return the bytes of a value with all that is in it, each part as often as it occurs: what printing it takes.

        Raises:
            OverBudgetError: it is larger than a value may be, or nested too deeply.
        """
        return self._measure(value)[0]

    def depth(self, value: object) -> int:
        """Return how deep containers lie in containers, 0 for a value without parts."""
        return self._measure(value)[1]

    def _measure(self, value: object, *, keep: bool = False) -> tuple[int, int]:
        """Return weight and depth; nothing that a template can reach ever changes, so both are measured once."""
        if isinstance(value, str | int):
            return sys.getsizeof(value), 0
        if isinstance(value, CountedIterator):
            return SMALL, value.depth
        if not isinstance(value, CONTAINERS):
            return SMALL, 0
        if known := self._weights.get(id(value)):
            return known[1:]
        self.spend(len(value))
        parts = chain(value.keys(), value.values()) if isinstance(value, dict) else value
        weight, depth = SMALL * (1 + len(value)), 0
        for part in parts:
            own, below = self._measure(part, keep=keep and self._reading)
            weight, depth = weight + own, max(depth, below)
        if weight > self._largest or depth >= DEEPEST:
            raise OverBudgetError("it makes a value that is larger than a chat template may, or nested more deeply")
        if keep:
            self._weights[id(value)] = value, weight, depth + 1
        return weight, depth + 1


class CountedIterator:
    """An iterator that reports every value, and how many others it goes over."""

    __slots__ = ("_budget", "_values", "depth")

    def __init__(self, values: Iterator[Any], budget: RenderBudget, depth: int) -> None:
        self._values, self._budget = values, budget
        self.depth = depth

    def __iter__(self) -> CountedIterator:
        return self

    def __next__(self) -> Any:
        self._budget.spend(1)
        return self._budget.made(next(self._values))


current: ContextVar[RenderBudget] = ContextVar("budget of the template that is being rendered")

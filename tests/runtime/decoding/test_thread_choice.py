"""The choice between all threads and fewer, on a machine whose step times and clock are made up."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from recycle_onnx.runtime.decoding import thread_choice
from recycle_onnx.runtime.decoding.thread_choice import KEEP_SECONDS, LONGEST_PAUSE, QUIET_SECONDS, ThreadChoice

QUIET = {False: 6.0, True: 8.5}
ONE_BUSY = {False: 11.0, True: 8.5}
CROWDED = {False: 30.0, True: 34.0}
"""Milliseconds of a step on all threads and on fewer: SmolLM2 of 135 M parameters in int8 on two cores."""


class Machine:
    """A machine that runs steps as a choice has them, each as long as it says."""

    def __init__(self, *, loads_sessions: bool = True) -> None:
        self.choice, self.now, self.length = ThreadChoice(), 100.0, 300
        self.loads_sessions = loads_sessions
        self.steps: list[tuple[float, bool]] = []  # when each one began, and whether it ran on fewer threads
        self._noise = itertools.cycle((1.0, 1.05, 0.98, 1.1, 1.0, 0.97, 1.02))

    def run(self, seconds: float, times: dict[bool, float], rows: Iterator[int] | None = None) -> None:
        """Run steps for so long; one on n rows takes n times as long."""
        end = self.now + seconds
        while self.now < end:
            fewer, count = self.choice.fewer, next(rows) if rows else 1
            took = 1e-3 * times[fewer] * next(self._noise) * count
            self.steps.append((self.now, fewer))
            self.now += took
            self.choice.took(count, self.length, took, self.now, fewer=fewer)
            self.choice.available = self.choice.wanted and self.loads_sessions

    def share_on_fewer(self, since: float) -> float:
        """Return the part of the steps since then that ran on fewer threads."""
        later = [fewer for began, fewer in self.steps if began >= since]
        return sum(later) / len(later)

    def first_on(self, fewer: bool, since: float) -> float:
        """Return how long after that time a step first ran on fewer threads, or on all."""
        return next(began for began, on_fewer in self.steps if began >= since and on_fewer == fewer) - since


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_quiet_machine_has_all_threads_and_no_other_sessions(machine: Machine) -> None:
    machine.run(30, QUIET)
    assert not machine.choice.wanted
    assert machine.share_on_fewer(0) == 0


def test_where_another_program_takes_a_core_fewer_threads_step_in_within_a_second(machine: Machine) -> None:
    machine.run(3, QUIET)
    start = machine.now
    machine.run(20, ONE_BUSY)
    assert machine.first_on(True, start) < 1
    assert machine.share_on_fewer(start + 1) > 0.93  # the rest are trials of all threads


def test_all_threads_come_back_with_the_cores(machine: Machine) -> None:
    machine.run(3, QUIET)
    machine.run(60, ONE_BUSY)
    start = machine.now
    machine.run(30, QUIET)
    assert machine.share_on_fewer(start + LONGEST_PAUSE + 1) == 0


def test_a_step_time_forgotten_on_fewer_threads_is_no_advantage_for_them(machine: Machine) -> None:
    """After minutes on fewer threads their own steps are the fastest known; a trial must not count by that."""
    machine.run(3, QUIET)
    machine.run(300, ONE_BUSY)
    start = machine.now
    machine.run(2 * LONGEST_PAUSE, QUIET)
    assert machine.first_on(False, start) <= LONGEST_PAUSE + 1
    assert not machine.choice.fewer


def test_a_crowded_machine_keeps_all_threads_which_get_more_of_its_cores(machine: Machine) -> None:
    machine.run(3, QUIET)
    start = machine.now
    machine.run(120, CROWDED)
    assert 0 < machine.share_on_fewer(start) < 0.06


def test_a_disturbance_that_was_there_before_the_first_step_is_seen_by_how_steps_vary(machine: Machine) -> None:
    machine._noise = itertools.cycle((0.7, 1.1, 0.95, 1.3, 1.0, 1.2))
    machine.run(10, ONE_BUSY)
    assert machine.choice.fewer


def test_times_that_are_nearly_equal_change_nothing(machine: Machine) -> None:
    machine.run(3, QUIET)
    start = machine.now
    machine.run(120, {False: 12.0, True: 11.7})
    assert machine.share_on_fewer(start) < 0.1
    assert not machine.choice.fewer


def test_a_hiccup_is_no_disturbance(machine: Machine) -> None:
    machine.run(3, QUIET)
    for _ in range(20):
        machine.run(0.01, {False: 90.0, True: 90.0})
        machine.run(1, QUIET)
    assert not machine.choice.wanted


def test_a_text_that_grows_is_no_disturbance(machine: Machine) -> None:
    for step in range(3000):
        machine.length += 1
        machine.run(0.001, {fewer: time * (1 + step / 1500) for fewer, time in QUIET.items()})
    assert not machine.choice.wanted


def test_a_longer_text_is_no_disturbance(machine: Machine) -> None:
    machine.run(3, QUIET)
    machine.length = 3000
    machine.run(3, {False: 10.0, True: 14.0})
    assert not machine.choice.wanted


def test_without_other_sessions_all_steps_run_on_all_threads() -> None:
    machine = Machine(loads_sessions=False)
    machine.run(3, QUIET)
    machine.run(30, ONE_BUSY)
    assert machine.choice.wanted
    assert machine.share_on_fewer(0) == 0


def test_the_other_sessions_are_let_go_once_nobody_has_disturbed_for_long(machine: Machine) -> None:
    machine.run(3, QUIET)
    machine.run(5, ONE_BUSY)
    machine.run(LONGEST_PAUSE + KEEP_SECONDS / 2, QUIET)
    assert machine.choice.wanted
    machine.run(KEEP_SECONDS, QUIET)
    assert not machine.choice.wanted


def test_after_a_quiet_while_the_next_disturbance_is_answered_at_once(machine: Machine) -> None:
    machine.run(3, QUIET)
    machine.run(11, CROWDED)
    machine.run(QUIET_SECONDS + 1, QUIET)
    start = machine.now
    machine.run(5, ONE_BUSY)
    assert machine.first_on(True, start) < 1


def test_trials_become_rare_where_they_change_nothing(machine: Machine) -> None:
    machine.run(3, QUIET)
    machine.run(100, ONE_BUSY)
    trials = [now for (_, before), (now, after) in itertools.pairwise(machine.steps) if before and not after]
    assert all(later - now > LONGEST_PAUSE for now, later in itertools.pairwise(trials[-5:]))


def test_steps_on_more_rows_count_by_what_such_steps_take(machine: Machine) -> None:
    """All threads are better here, though they have the long steps whenever they are tried."""
    rows = iter(lambda: 4 if not machine.choice.fewer and machine.choice.wanted else 1, None)
    for count in (1, 4):
        machine.run(3, QUIET, itertools.repeat(count))
    machine.run(2, ONE_BUSY)
    assert machine.choice.fewer
    machine.run(2 * LONGEST_PAUSE, QUIET, rows)
    assert not machine.choice.fewer


def test_a_step_of_another_text_that_began_before_the_exchange_counts_for_nothing(machine: Machine) -> None:
    machine.run(3, QUIET)
    before = dict(machine.choice._fastest)
    machine.choice.took(1, machine.length, 1e-6, machine.now, fewer=True)
    assert machine.choice._fastest == before


@pytest.mark.parametrize("in_a_trial", [False, True])
def test_an_interrupt_on_any_line_leaves_a_choice_that_goes_on(in_a_trial: bool) -> None:
    for line in itertools.count():
        machine = Machine()
        machine.run(3, QUIET)
        while machine.choice._trying != in_a_trial:
            machine.run(0.001, ONE_BUSY)
        machine.choice._seconds, machine.choice._steps = 1.0, 5  # so that the next step ends a window
        if not interrupted(machine, line):
            break
        start = machine.now
        machine.run(3, QUIET)
        machine.run(5, ONE_BUSY)
        assert machine.share_on_fewer(start + 4) > 0.5
    assert line > 12  # the window's generator too


def interrupted(machine: Machine, line: int) -> bool:
    """Run a step of which Ctrl-C comes when so many lines have run; tell whether it has so many."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != thread_choice.__file__:
            return None
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        machine.choice.took(1, machine.length, 6e-3, machine.now, fewer=machine.choice.fewer)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False

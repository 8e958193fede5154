"""What tests cost in CPU seconds, which are the same on a busy machine as on an idle one."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def used() -> float:
    """CPU seconds of this process, its threads, and those of its children that have ended."""
    return sum(os.times()[:4])


class CpuTime:
    """Measures each phase of each test, and tells the sum and the largest at the end, whoever ran them."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.before = used()
        self.phases: list[tuple[float, str]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = used()
        report.cpu_seconds = now - self.before  # pytest-xdist carries it to the process that tells
        self.before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.phases.append((report.cpu_seconds, f"{report.when:8} {report.nodeid}"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("CPU seconds")
        total = sum(seconds for seconds, _ in self.phases)
        for seconds, name in sorted(self.phases, reverse=True)[: self.largest]:
            terminalreporter.write_line(f"{seconds:.2f}s {name}")
        terminalreporter.write_line(f"{total:.0f}s in all")

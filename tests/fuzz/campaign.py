"""Mutants by the thousand, in workers that may die of them, and a report that a later run goes on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

SECONDS = 20.0
"""Of processor time that one mutant may take."""
WALL_SECONDS = 180.0
"""The same on a busy machine: whoever waits so long hangs."""
MEMORY = 1 << 30
"""Bytes beyond what the worker had."""
HARMS = ("foreign", "crash", "slow", "memory", "outside")
KEPT = 20
"""Findings of each harm that are told; all are counted."""
ROOT = Path(__file__).parents[2]


@dataclass
class Tally:
    """What came of the mutants of one kind."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    most_memory_mb: float = 0.0
    harms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HARMS, 0))
    findings: list[dict[str, Any]] = field(default_factory=list)

    def count(self, number: int, answer: dict[str, Any]) -> None:
        """Add one."""
        self.tried += 1
        self.seconds = round(self.seconds + answer["seconds"], 6)
        harms = [answer["outcome"]] if answer["outcome"] in HARMS else []
        if not harms:
            setattr(self, answer["outcome"], getattr(self, answer["outcome"]) + 1)
        harms += ["slow"] * (answer["seconds"] > SECONDS) + ["memory"] * (answer["memory"] > MEMORY)
        harms += ["outside"] * bool(answer["paths"])
        self.slowest_seconds = max(self.slowest_seconds, round(answer["seconds"], 3))
        self.most_memory_mb = max(self.most_memory_mb, round(answer["memory"] / (1 << 20), 1))
        for harm in dict.fromkeys(harms):
            self.harms[harm] += 1
            if self.harms[harm] <= KEPT:
                detail = "; ".join(answer["paths"]) if harm == "outside" else answer["detail"]
                self.findings.append({"number": number, "harm": harm, "detail": detail})


class Worker:
    """A process that tries mutants; a new one takes its place when it dies."""

    def __init__(self, without: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="recycle-onnx-fuzz-")
        self._without = ["--without", *without] if without else []
        self._process: subprocess.Popen[bytes] | None = None

    def try_one(self, kind: str, seed: int, number: int) -> dict[str, Any]:
        """Have one tried; whatever happens, this comes back."""
        process = self._process if self._process is not None and self._process.poll() is None else self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{kind} {seed} {number}\n".encode())
        process.stdin.flush()
        before, started = _processor_seconds(process.pid), time.monotonic()
        with DefaultSelector() as selector:
            selector.register(process.stdout, EVENT_READ)
            while not selector.select(timeout=1.0):
                seconds = _processor_seconds(process.pid) - before
                if seconds > 2 * SECONDS or time.monotonic() - started > WALL_SECONDS:
                    self.end()
                    return {"outcome": "slow", "detail": "ended", "seconds": seconds, "memory": 0, "paths": []}
        line = process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = process.wait()
        told = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        detail = f"{told}: {self._said()}"
        seconds = min(SECONDS, time.monotonic() - started)  # for what a dead process has used nobody can ask
        return {"outcome": "crash", "detail": detail, "seconds": seconds, "memory": 0, "paths": []}

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process, and remove its folder."""
        self.end()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.worker",
            f"{self._folder.name}/{time.monotonic_ns()}",
            *self._without,
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with Path(self._folder.name, "stderr").open("wb") as said:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, cwd=ROOT, env=environment
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise AssertionError(f"a worker does not start: {self._said()}")
        return self._process

    def _said(self) -> str:
        return Path(self._folder.name, "stderr").read_text(errors="replace")[-2000:]


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def campaign(
    kinds: Sequence[str],
    count: int,
    seed: int = 0,
    *,
    seconds: float = float("inf"),
    evenly: bool = False,
    without: Sequence[str] = (),
    known: dict[str, Tally] | None = None,
    progress: Callable[[dict[str, Tally]], None] = lambda _: None,
) -> dict[str, Tally]:
    """Try `count` mutants, those of `known` among them, or as many as the time allows.

    Each kind has as much processor time as the others; so there are more mutants of what is quickly refused. `evenly`
    it has as many mutants instead: which are tried then depends on no clock.
    """
    tallies = {kind: (known or {}).get(kind, Tally()) for kind in kinds}
    worker, end = Worker(without), time.monotonic() + seconds
    try:
        while time.monotonic() < end and sum(tally.tried for tally in tallies.values()) < count:
            kind = min(tallies, key=lambda name: tallies[name].tried if evenly else tallies[name].seconds)
            number = tallies[kind].tried
            tallies[kind].count(number, worker.try_one(kind, seed, number))
            progress(tallies)
    finally:
        worker.close()
    return tallies


def read_report(path: Path, seed: int) -> dict[str, Tally]:
    """What an earlier run with this seed has tried."""
    if not path.exists():
        return {}
    raw = json.loads(path.read_text())
    return {kind: Tally(**tally) for kind, tally in raw["kinds"].items()} if raw["seed"] == seed else {}


def report(tallies: dict[str, Tally], seed: int) -> dict[str, Any]:
    """Everything as JSON."""
    total = {harm: sum(tally.harms[harm] for tally in tallies.values()) for harm in HARMS}
    tried = sum(tally.tried for tally in tallies.values())
    return {"seed": seed, "tried": tried, "harms": total, "kinds": {kind: asdict(t) for kind, t in tallies.items()}}

"""Processors, memory, versions and telemetry of this machine, and what is said of others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from recycle_onnx.doctor import machine, versions
from recycle_onnx.machine import cgroup, huge_pages, instructions, memory, processors
from recycle_onnx.machine.machine import Machine
from recycle_onnx.machine.processors import Processors

LAPTOP = Processors(physical=4, logical=8, allowed=8, quota=None)


def test_this_machine() -> None:
    limits = cgroup.limits()
    found, room = processors.find(limits), memory.find(limits)
    assert 1 <= found.useful_threads <= found.allowed <= found.logical
    assert found.physical is None or found.physical <= found.logical
    assert room.free_bytes is not None
    assert room.most_bytes is not None
    assert 0 < room.free_bytes <= room.most_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="numpy's list is compared with Linux's")
def test_instruction_sets_are_those_that_numpy_finds() -> None:
    features = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    pairs = {
        "AVX2": "AVX2",
        "FMA": "FMA3",
        "F16C": "F16C",
        "AVX512": "AVX512F",
        "NEON": "NEON",
        "NEON dotprod": "ASIMDDP",
    }
    known = {ours: theirs for ours, theirs in pairs.items() if theirs in features}
    assert known
    assert {ours for ours, theirs in known.items() if features[theirs]} == known.keys() & set(instructions.names())


@pytest.mark.parametrize(
    ("found", "threads", "useful"),
    [
        (LAPTOP, None, 4),
        (LAPTOP, 4, 4),
        (replace(LAPTOP, physical=None), None, 8),
        (replace(LAPTOP, allowed=2), 2, 2),
        (replace(LAPTOP, quota=1.5), 1, 1),
        (replace(LAPTOP, quota=0.2), 1, 1),
    ],
)
def test_as_many_threads_as_there_are_processors_are_fine(found: Processors, threads: int | None, useful: int) -> None:
    assert found.useful_threads == useful
    assert list(machine.thread_findings(found, threads)) == []


@pytest.mark.parametrize(
    ("found", "threads", "words"),
    [
        (LAPTOP, 6, ("6 threads", "--threads 4")),
        (replace(LAPTOP, allowed=2), None, ("4 threads", "may use 2 processors", "--threads 2")),
        (replace(LAPTOP, allowed=1), None, ("may use 1 processor", "--threads 1")),
        (replace(LAPTOP, quota=2.5), None, ("4 threads", "2 processors' time", "--threads 2")),
    ],
)
def test_more_threads_than_processors(found: Processors, threads: int | None, words: tuple[str, ...]) -> None:
    (finding,) = machine.thread_findings(found, threads)
    assert finding.level == "advice"
    for word in words:
        assert word in f"{finding.what} {finding.do}"


def test_versions_are_those_that_are_imported() -> None:
    found = versions.find()
    assert (found.packages["onnxruntime"], found.packages["numpy"]) == (ort.__version__, np.__version__)
    assert list(found.onnxruntime_packages.values()) == [ort.__version__]
    assert list(versions.findings(found)) == []


def test_packages_that_are_old_or_write_over_each_other() -> None:
    found = versions.find()
    odd = replace(
        found,
        packages={**found.packages, "onnxruntime": "1.9.1"},
        onnxruntime_packages={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.9.1"},
    )
    both, old = versions.findings(odd)
    assert "onnxruntime and onnxruntime-gpu" in both.what
    assert "onnxruntime 1.9.1 is older than 1.23.2" in old.what


@pytest.mark.parametrize(
    ("first", "variable", "state"),
    [
        ("recycle_onnx", None, "off"),
        ("onnxruntime", None, "off from the first bundle on"),
        ("onnxruntime", "1", "off"),
        ("recycle_onnx", "0", "off from the first bundle on"),
    ],
)
def test_telemetry_depends_on_what_onnxruntime_read(first: str, variable: str | None, state: str) -> None:
    code = (
        f"import {first}\nfrom recycle_onnx.doctor import telemetry\nfound = telemetry.find()\n"
        "print(found.state, len(list(telemetry.findings(found))))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if variable is None else {"ORT_DISABLE_TELEMETRY": variable}
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert out.stdout.strip() == f"{state} {int(state != 'off')}"


@pytest.mark.parametrize(("state", "findings"), [("on", 0), ("off", 1), ("not on this system", 0)])
def test_huge_pages_that_are_turned_off_are_told_of(state: huge_pages.State, findings: int) -> None:
    here = replace(Machine.this(), instructions=[], huge_pages=state)
    told = [finding for finding in machine.findings(here, 1) if "huge pages" in finding.what]
    assert len(told) == findings

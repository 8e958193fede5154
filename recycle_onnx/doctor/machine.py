"""Whether a session suits this machine."""

from __future__ import annotations

from collections.abc import Iterator

from recycle_onnx.doctor.finding import Finding
from recycle_onnx.machine import huge_pages
from recycle_onnx.machine.machine import Machine
from recycle_onnx.machine.processors import Processors


def findings(machine: Machine, threads: int | None) -> Iterator[Finding]:
    """Yield what keeps a session from the speed that the machine could give."""
    yield from thread_findings(machine.processors, threads)
    sets = machine.instructions
    if sets and not {"AVX2", "NEON"} & set(sets):
        yield Finding(
            "advice",
            f"{machine.processor} has neither AVX2 nor NEON",
            "ONNX Runtime's fast kernels for quantized weights need one of them",
            "use a float32 bundle here, or another machine",
        )
    if machine.huge_pages == "off":
        yield Finding(
            "advice",
            f"transparent huge pages are turned off ({huge_pages.SETTING})",
            "weights lie in small pages, and a step on one token takes some 15 % longer",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )


def thread_findings(processors: Processors, threads: int | None) -> Iterator[Finding]:
    """Yield a finding where a session has more threads than processors for them."""
    wanted, useful = processors.session_threads(threads), processors.useful_threads
    if wanted <= useful:
        return
    limit = (
        f"may use {processors.allowed} processors" if processors.allowed <= useful else f"has {useful} processors' time"
    )
    yield Finding(
        "advice",
        f"a session has {wanted} threads, and this process {limit.replace('1 processors', '1 processor')}",
        "threads that wait for a processor hold up the others in every operator",
        f"--threads {useful}, or load(…, threads={useful})",
    )

"""Many threads on one model for a long time, with random cancellations: right results, and memory that stays.

python benchmarks/soak.py BUNDLE --warm-up 2 --minutes 10
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from scipy import stats

import recycle_onnx
from recycle_onnx.runtime.model import Model

PROMPTS = ("Once upon a time", "One day, a little fox", "The sun was hot and", "Tim and Sue saw something shiny " * 6)
STRATEGIES = ("auto", "full", "alternate", "verify", "lookup")
LONGEST = 48


def job(number: int) -> dict[str, object]:
    """Return the controls of a request; the same again after 60."""
    kind = number % 60
    return {"strategy": STRATEGIES[kind % 5], "max_new_tokens": 4 + kind % (LONGEST - 4), "temperature": kind % 3 / 2}


def request(model: Model, number: int, expected: dict[tuple[str, int], list[int]]) -> str:
    """One request, alone or as a turn of a conversation, perhaps cancelled; gives how it ended."""
    dice = random.Random(number)
    prompt, controls = dice.choice(PROMPTS), job(number)
    if dice.random() < 0.3:
        chat = model.conversation()
        for turn in ("Tell me of a fox.", "And then?"):
            answer = chat.send(turn, **controls)
            _consume(answer, dice)
        if answer.result.finish_reason != "cancelled":
            fresh = model.generate(answer.prompt, stop=answer.stop_strings, **controls)
            _check(number, answer.result.tokens, fresh.tokens)
        return answer.result.finish_reason
    generation = model.stream(prompt, **controls)
    _consume(generation, dice)
    made, whole = generation.result.tokens, expected[prompt, number % 60]
    _check(number, made, whole[: len(made)] if generation.result.finish_reason == "cancelled" else whole)
    return generation.result.finish_reason


def _check(number: int, made: list[int], expected: list[int]) -> None:
    if made != expected:
        raise AssertionError(f"request {number}: {made} in the place of {expected}")


def _consume(generation: recycle_onnx.runtime.generation.Generation, dice: random.Random) -> None:
    timer = threading.Timer(dice.random() * 0.05, generation.cancel) if dice.random() < 0.3 else None
    if timer:
        timer.start()
    for _ in generation:
        pass
    if timer:
        timer.cancel()
        timer.join()


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2(3) gives, over all arenas, in bytes (`ordblks`, `smblks`, `hblks` are counts)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def resident_mb() -> float:
    """Memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def allocated_mb() -> float:
    """Return the bytes that glibc's allocator holds: a leak grows here, a fragmented heap does not."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20


def sample(every: float, until: threading.Event) -> np.ndarray:
    """Return [samples, (minutes, resident MB, allocated MB)], every so many seconds.

    What glibc's arenas keep for later is given back first: it grows to the highest tide of all threads, which comes
    ever more rarely, and would look like a leak.
    """
    started, samples = time.monotonic(), array("d")
    trim = ctypes.CDLL(None).malloc_trim
    while not until.wait(every):
        trim(0)
        samples.extend(((time.monotonic() - started) / 60, resident_mb(), allocated_mb()))
    return np.array(samples).reshape(-1, 3)


def slope(minutes: np.ndarray, megabytes: np.ndarray, blocks: int = 12) -> tuple[float, float, float]:
    """Megabytes a minute with a 95 % interval, over means of blocks.

    (Neighbouring samples are nearly the same, and would make the interval too narrow.)
    """
    means = [[block.mean() for block in np.array_split(values, blocks)] for values in (minutes, megabytes)]
    line = stats.linregress(*means)
    half = stats.t.ppf(0.975, blocks - 2) * line.stderr
    return line.slope, line.slope - half, line.slope + half


@click.command()
@click.argument("bundle", type=Path)
@click.option("--minutes", default=10.0, show_default=True, help="What is measured, behind the warm-up.")
@click.option("--warm-up", default=2.0, show_default=True, help="Minutes in which the pools of all threads fill.")
@click.option("--threads", default=8, show_default=True, help="Threads that send requests.")
def main(bundle: Path, minutes: float, warm_up: float, threads: int) -> None:
    """Soak BUNDLE."""
    model = recycle_onnx.load(bundle, threads=1)
    expected = {(p, kind): model.generate(p, **job(kind)).tokens for p in PROMPTS for kind in range(60)}
    end, over = time.monotonic() + 60 * (warm_up + minutes), threading.Event()

    def work(worker: int) -> Counter[str]:
        reasons, number = Counter[str](), worker
        while time.monotonic() < end:
            reasons[request(model, number, expected)] += 1
            number += threads
        return reasons

    with ThreadPoolExecutor(threads + 1) as pool:
        sampling = pool.submit(sample, 1, over)
        workers = [pool.submit(work, worker) for worker in range(threads)]
        try:
            reasons = sum((worker.result() for worker in workers), Counter[str]())
        finally:
            over.set()
        samples = sampling.result()
    click.echo(f"{reasons.total()} requests in {threads} threads, {reasons['cancelled']} cancelled, all right")
    report("resident", samples[:, 0], samples[:, 1], warm_up)
    report("allocated", samples[:, 0], samples[:, 2], warm_up)


def report(name: str, minutes: np.ndarray, megabytes: np.ndarray, warm_up: float) -> None:
    by_minute = [megabytes[minutes // 1 == minute].mean() for minute in range(int(minutes[-1]))]
    click.echo(f"MB {name}, minute by minute: {' '.join(f'{size:.1f}' for size in by_minute)}")
    measured = minutes >= warm_up
    rate, low, high = slope(minutes[measured], megabytes[measured])
    click.echo(f"  {rate:+.3f} MB a minute behind the warm-up (95 %: {low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()

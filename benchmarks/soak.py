"""Many threads on one model for a long time, with random cancellations: right results, and memory that stays.

python benchmarks/soak.py BUNDLE --minutes 10
"""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from scipy import stats

import recycle_onnx
from recycle_onnx.runtime.model import RecycleModel

PROMPTS = ("Once upon a time", "One day, a little fox", "The sun was hot and", "Tim and Sue saw something shiny " * 6)
STRATEGIES = ("auto", "full", "alternate", "verify", "lookup")
LONGEST = 48


def job(number: int) -> dict[str, object]:
    """Controls of a request; the same again after 60."""
    kind = number % 60
    return {"strategy": STRATEGIES[kind % 5], "max_new_tokens": 4 + kind % (LONGEST - 4), "temperature": kind % 3 / 2}


def request(model: RecycleModel, number: int, expected: dict[tuple[str, int], list[int]]) -> str:
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


def resident_mb() -> float:
    """Memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def sample(every: float, until: threading.Event) -> list[tuple[float, float]]:
    """Seconds and megabytes, every so many seconds."""
    started, found = time.monotonic(), []
    while not until.wait(every):
        found.append((time.monotonic() - started, resident_mb()))
    return found


def slope(samples: list[tuple[float, float]], blocks: int = 12) -> tuple[float, float, float]:
    """Megabytes a minute with a 95 % interval, after the first fifth (which fills pools), over means of blocks.

    (Neighbouring samples are nearly the same, and would make the interval too narrow.)
    """
    kept = np.array_split(np.array(samples[len(samples) // 5 :]), blocks)
    minutes, megabytes = np.array([block.mean(0) for block in kept]).T * [[1 / 60], [1]]
    line = stats.linregress(minutes, megabytes)
    half = stats.t.ppf(0.975, blocks - 2) * line.stderr
    return line.slope, line.slope - half, line.slope + half


@click.command()
@click.argument("bundle", type=Path)
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--threads", default=8, show_default=True, help="Threads that send requests.")
def main(bundle: Path, minutes: float, threads: int) -> None:
    """Soak BUNDLE."""
    model = recycle_onnx.load(bundle, threads=1)
    expected = {(p, kind): model.generate(p, **job(kind)).tokens for p in PROMPTS for kind in range(60)}
    end, done = time.monotonic() + 60 * minutes, threading.Event()

    def work(worker: int) -> list[str]:
        reasons, number = [], worker
        while time.monotonic() < end:
            reasons.append(request(model, number, expected))
            number += threads
        return reasons

    with ThreadPoolExecutor(threads + 1) as pool:
        sampling = pool.submit(sample, 0.5, done)
        workers = [pool.submit(work, worker) for worker in range(threads)]
        try:
            reasons = [reason for worker in workers for reason in worker.result()]
        finally:
            done.set()
        samples = sampling.result()
    rate, low, high = slope(samples)
    by_minute = [np.mean([size for at, size in samples if at // 60 == minute]) for minute in range(int(minutes))]
    click.echo(f"MB resident, minute by minute: {' '.join(f'{size:.1f}' for size in by_minute)}")
    click.echo(f"{len(reasons)} requests in {threads} threads, {reasons.count('cancelled')} cancelled, all right")
    click.echo(f"{samples[-1][1]:.0f} MB resident; {rate:+.3f} MB a minute (95 %: {low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()

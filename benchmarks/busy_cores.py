"""Steps on a machine whose cores others use too: threads that wait awake for long, ours, and fewer of them.

    python benchmarks/busy_cores.py BUNDLE [--threads 2] [--busy 1] [--rounds 40]

The same steps in turns: by threads that spin as long as ONNX Runtime lets them by default, by threads that soon sleep,
as the runtime sets them, and by a single thread. First with nobody beside, then with so many busy processes. Each line
is a median, and the time as a part of the better fixed choice: all threads with long spinning, or one thread.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import click

import recycle_onnx
from recycle_onnx.evaluation.openings import own_text
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort import sessions

IN_A_ROW = 8
"""Steps of one model before the next one's turn, as in decoding: the first of them wakes the threads."""
LONG = ("session.intra_op.spin_duration_us", "-1")
"""What ONNX Runtime does where nothing is said."""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def models(bundle: Path, threads: int) -> dict[str, Model]:
    """Load the bundle three times."""
    with patch.object(sessions, "SHORT_SPINNING", LONG):
        spinning = recycle_onnx.load(bundle, threads=threads)
    return {
        f"{threads} threads, long spinning": spinning,
        f"{threads} threads, as set here": recycle_onnx.load(bundle, threads=threads),
        "1 thread": recycle_onnx.load(bundle, threads=1),
    }


def measure(loaded: dict[str, Model], context: int, rounds: int) -> None:
    """Time steps on one token in turns, and print medians of all that are paired by round."""
    prompt = own_text(next(iter(loaded.values())), context)
    decoders = {name: model.decoder("full") for name, model in loaded.items()}
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for decoder in decoders.values():
        decoder.prefill(prompt)
    for _ in range(rounds):
        for name, decoder in decoders.items():
            started = time.perf_counter()
            for _ in range(IN_A_ROW):
                decoder.full_step(prompt[-1:], keep=1)
            times[name].append(1e3 * (time.perf_counter() - started) / IN_A_ROW)
            decoder.keep(context)
    medians = {name: statistics.median(values) for name, values in times.items()}
    better = min((name for name in times if "set here" not in name), key=lambda name: medians[name])
    for name, values in times.items():
        part = statistics.median(own / other for own, other in zip(values, times[better], strict=True))
        click.echo(f"  {name}: {medians[name]:.2f} ms, {part:.2f} of the better fixed choice")


@click.command()
@click.argument("bundle", type=Path)
@click.option("--threads", default=2, show_default=True)
@click.option("--busy", "others", default=1, show_default=True, help="Processes that keep a core busy.")
@click.option("--context", default=128, show_default=True)
@click.option("--rounds", default=40, show_default=True)
def main(bundle: Path, threads: int, others: int, context: int, rounds: int) -> None:
    """Measure BUNDLE without and with other programs beside it."""
    loaded = models(bundle, threads)
    click.echo("nobody beside:")
    measure(loaded, context, rounds)
    click.echo(f"{others} busy beside:")
    with busy(others):
        measure(loaded, context, rounds)


if __name__ == "__main__":
    main()

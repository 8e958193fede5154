"""Steps on a machine whose cores others use too: threads that wait awake for long, ours, fewer of them, and a choice.

    python benchmarks/busy_cores.py BUNDLE [--threads 2] [--busy 0 --busy 1 …] [--rounds 20]

The same steps in turns: by threads that spin as long as ONNX Runtime lets them by default, by threads that soon sleep,
by half as many, and by a model as `load` gives it, which may leave cores to others. This for each number of busy
processes beside it; with `--pin`, each of them keeps to one core. Before that, the last of the models is alone for some
seconds, and it is told when it fell back to fewer threads. Each line is a median, and the median over rounds of the
time as a part of the better fixed choice: all threads, or half of them.
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
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort import sessions

LONG = ("session.intra_op.spin_duration_us", "-1")
"""What ONNX Runtime does where nothing is said."""
LONG_SPINNING, FIXED, HALF, CHOOSING = "long spinning", "fixed", "half of them, fixed", "as `load` gives it"


@contextmanager
def busy(count: int, *, pin: bool) -> Iterator[None]:
    """Keep so many cores busy."""
    pinned = "import os; os.sched_setaffinity(0, {{sorted(os.sched_getaffinity(0))[-1 - {}]}})\n" if pin else ""
    code = pinned + "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code.format(index)]) for index in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def models(bundle: Path, threads: int) -> dict[str, Model]:
    """Load the bundle in four ways."""
    with patch.object(sessions, "SHORT_SPINNING", LONG):
        spinning = recycle_onnx.load(bundle, threads=threads, fixed_threads=True)
    return {
        LONG_SPINNING: spinning,
        FIXED: recycle_onnx.load(bundle, threads=threads, fixed_threads=True),
        HALF: recycle_onnx.load(bundle, threads=threads // 2, fixed_threads=True),
        CHOOSING: recycle_onnx.load(bundle, threads=threads),
    }


def settle(decoder: Decoder, token: int, seconds: float) -> None:
    """Run steps for some seconds, and print when their number of threads changed."""
    started, length, changes = time.perf_counter(), decoder.full.length, []
    on_fewer, was_fewer = decoder.work.runs_on_fewer_threads, False
    while (elapsed := time.perf_counter() - started) < seconds:
        decoder.full_step([token], keep=1)
        fewer = decoder.work.runs_on_fewer_threads > on_fewer
        if fewer != was_fewer:
            changes.append(f"{'fewer' if fewer else 'all'} at {elapsed:.1f} s")
        on_fewer, was_fewer = decoder.work.runs_on_fewer_threads, fewer
        if decoder.full.length == 2 * length:
            decoder.keep(length)
    decoder.keep(length)
    click.echo(f"  {CHOOSING}: {', '.join(changes) or 'no change of threads'}")


def measure(decoders: dict[str, Decoder], token: int, rounds: int, in_a_row: int) -> None:
    """Time steps on one token in turns, and print medians of all that are paired by round."""
    times: dict[str, list[float]] = {name: [] for name in decoders}
    on_fewer = decoders[CHOOSING].work.runs_on_fewer_threads
    for _ in range(rounds):
        for name, decoder in decoders.items():
            length, started = decoder.full.length, time.perf_counter()
            for _ in range(in_a_row):
                decoder.full_step([token], keep=1)
            times[name].append(1e3 * (time.perf_counter() - started) / in_a_row)
            decoder.keep(length)
    medians = {name: statistics.median(values) for name, values in times.items()}
    better = min((FIXED, HALF), key=lambda name: medians[name])
    for name, values in times.items():
        part = statistics.median(own / other for own, other in zip(values, times[better], strict=True))
        whole = sum(values) / sum(times[better])
        click.echo(f"  {name}: {medians[name]:.2f} ms, {part:.2f} of the better fixed choice, {whole:.2f} of its sum")
    on_fewer = decoders[CHOOSING].work.runs_on_fewer_threads - on_fewer
    click.echo(f"  {CHOOSING}: {on_fewer / (rounds * in_a_row):.0%} of these steps on fewer threads")


@click.command()
@click.argument("bundle", type=Path)
@click.option("--threads", default=2, show_default=True)
@click.option("--busy", "others", multiple=True, type=int, default=(0, 1, 3, 6), show_default=True)
@click.option("--pin", is_flag=True, help="Keep each busy process on a core of its own.")
@click.option("--context", default=128, show_default=True)
@click.option("--rounds", default=20, show_default=True)
@click.option("--in-a-row", default=32, show_default=True, help="Steps of one model before the next one's turn.")
@click.option("--settle", "seconds", default=5.0, show_default=True, help="Seconds for the choice to be made.")
def main(
    bundle: Path,
    threads: int,
    others: tuple[int, ...],
    pin: bool,
    context: int,
    rounds: int,
    in_a_row: int,
    seconds: float,
) -> None:
    """Measure BUNDLE without and with other programs beside it."""
    loaded = models(bundle, threads)
    prompt = own_text(loaded[FIXED], context)
    decoders = {name: model.decoder("full") for name, model in loaded.items()}
    for decoder in decoders.values():
        decoder.prefill(prompt)
    for count in others:
        click.echo(f"{count} busy beside:")
        with busy(count, pin=pin):
            settle(decoders[CHOOSING], prompt[-1], seconds)
            measure(decoders, prompt[-1], rounds, in_a_row)


if __name__ == "__main__":
    main()

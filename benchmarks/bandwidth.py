"""Is the doctor's bandwidth the machine's? Compares it, in turns, with a C program.

    python benchmarks/bandwidth.py [--threads 1,2] [--rounds N]

Needs a C compiler, and a processor for each thread: with fewer, the two wait for one another in different ways. Prints
medians, and fails where they are more than 20 % apart.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from recycle_onnx.machine import bandwidth
from recycle_onnx.machine.processors import allowed

SOURCE = Path(__file__).parent / "read_bandwidth.c"
TOLERANCE = 0.2


def compiler() -> str | None:
    """Return a C compiler, None if there is none."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compile the C program."""
    program = folder / "read_bandwidth"
    command = [str(compiler()), "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def in_c(program: Path, threads: int, size: int) -> float:
    """GB/s that the C program reads."""
    process = subprocess.run([program, str(threads), str(size >> 20)], check=True, capture_output=True, text=True)
    return float(process.stdout)


def compare(threads: int, rounds: int, size: int) -> tuple[list[float], list[float]]:
    """GB/s of the doctor and of the C program, by turns."""
    data = np.ones(size // 8, np.uint64)
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        pairs = [(bandwidth.read(data, threads), in_c(program, threads, size)) for _ in range(rounds)]
    ours, theirs = zip(*pairs, strict=True)
    return list(ours), list(theirs)


@click.command()
@click.option("--threads", default=f"1,{allowed()}", show_default=True, help="Separated by commas.")
@click.option("--rounds", default=5, show_default=True)
def main(threads: str, rounds: int) -> None:
    """Compare the two."""
    if compiler() is None:
        sys.exit("no C compiler; set CC to one")
    apart = False
    for count in sorted({int(part) for part in threads.split(",")}):
        ours, theirs = compare(count, rounds, bandwidth.beyond_caches(count))
        ratio = statistics.median(ours) / statistics.median(theirs)
        apart |= abs(ratio - 1) > TOLERANCE
        click.echo(f"{count} threads: doctor {_shown(ours)}, C {_shown(theirs)}, ratio of medians {ratio:.2f}")
    sys.exit(apart)


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} GB/s ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()

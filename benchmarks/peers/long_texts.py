"""Full steps behind texts of several lengths, beside llama.cpp with flash attention: what a long text costs.

    python benchmarks/peers/long_texts.py --bundle NAME=BUNDLE … --gguf MODEL.gguf … --llama PYTHON
        [--contexts 128,2048,4096] [--threads 2] [--rounds 20]

Every GGUF file is run with keys and values in float16 and in q8_0. PYTHON is the interpreter of an environment with
llama-cpp-python. All engines take turns, in the opposite order in every other round. For each context a table: median
milliseconds of a run on one token and on two, what two cost beside one (T2/T1), and each engine's time for one token
as a part of the first bundle's (medians of ratios, paired by round).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from worker import Worker

from recycle_onnx.cli.options import pairs

HERE = Path(__file__).parent
CACHE_TYPES = ("f16", "q8_0")
"""llama.cpp's, of keys and values."""
ROOM = 64
"""Tokens of context that llama.cpp gets beyond the longest text."""
TOKENS = (1, 2)
"""Of a run."""
Samples = dict[tuple[str, int], list[float]]
"""Milliseconds by engine and tokens of a run."""


def started(
    bundles: Mapping[str, str], files: tuple[Path, ...], llama: str, longest: int, threads: int
) -> dict[str, Worker]:
    """Start a process for every engine."""
    workers = {name: Worker(sys.executable, HERE / "ours.py", path, threads) for name, path in bundles.items()}
    for path in files:
        for kind in CACHE_TYPES:
            name = f"llama.cpp {path.stem.rpartition('.')[2].upper()}, cache {kind}"
            workers[name] = Worker(llama, HERE / "llama.py", path, threads, longest + ROOM, kind)
    return workers


def timed(workers: dict[str, Worker], length: int, rounds: int) -> Samples:
    """Time runs of all engines in turns; the first round, which reads the text and allocates, is left out."""
    samples: Samples = {(name, count): [] for name in workers for count in TOKENS}
    for number in range(rounds + 1):
        for name in workers if number % 2 else reversed(workers):
            for count in TOKENS:
                answer = workers[name].ask(behind=length, step=count)
                if number:
                    samples[name, count].append(answer["ms"])
    return samples


def table(samples: Samples, names: list[str]) -> str:
    """Write a line of Markdown for every engine."""

    def ratio(over: tuple[str, int], under: tuple[str, int]) -> float:
        return statistics.median(a / b for a, b in zip(samples[over], samples[under], strict=True))

    lines = [f"| | one token | two | T2/T1 | one token, x {names[0]} |", "|---|---|---|---|---|"]
    for name in names:
        one, two = (statistics.median(samples[name, count]) for count in TOKENS)
        growth, part = ratio((name, 2), (name, 1)), ratio((name, 1), (names[0], 1))
        lines.append(f"| {name} | {one:.2f} ms | {two:.2f} ms | {growth:.2f} | {part:.2f} |")
    return "\n".join(lines)


@click.command()
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="NAME=BUNDLE", help="May be repeated.")
@click.option("--gguf", "files", type=Path, multiple=True, help="May be repeated.")
@click.option("--llama", default=sys.executable, help="Interpreter with llama-cpp-python.")
@click.option("--contexts", default="128,2048,4096", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=20, show_default=True)
def main(
    bundles: tuple[str, ...], files: tuple[Path, ...], llama: str, contexts: str, threads: int, rounds: int
) -> None:
    """Measure steps of all engines behind texts of each length."""
    lengths = [int(length) for length in contexts.split(",")]
    workers = started(pairs("bundle", bundles, "int8=BUNDLE"), files, llama, max(lengths), threads)
    for length in lengths:
        click.echo(
            f"\nbehind {length} tokens, {threads} threads\n\n{table(timed(workers, length, rounds), [*workers])}"
        )
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()

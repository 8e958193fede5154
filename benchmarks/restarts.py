"""How soon a restarted server answers a long prompt that it has on disk, and how soon one that reads it anew.

    python benchmarks/restarts.py BUNDLE TEXT [--tokens 4000] [--rounds 5] [--threads 2] [--cold]

The prompt is the beginning of TEXT. Every measurement is the first request to a server that was just started, with and
without its prompts on disk in turns. `--cold` first lets the system forget the files, so that they come from the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import click

from recycle_onnx.files import read_text
from recycle_onnx.tokenizer import load_tokenizer

NEW_TOKENS = 32
"""Of an answer: enough to compare two of them, and for the module to read the prompt too."""


@contextmanager
def server(bundle: Path, cache: Path, threads: int, gigabytes: float) -> Iterator[str]:
    """Start `recycle-onnx serve` with a cache of its own; give its address, and end it as a supervisor would."""
    command = [sys.executable, "-m", "recycle_onnx", "serve", str(bundle), "--port", "0", "--threads", str(threads)]
    limit = ["--prompt-cache-gb", str(gigabytes)]
    environment = {**os.environ, "RECYCLE_ONNX_CACHE": str(cache)}
    with subprocess.Popen([*command, *limit], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        words = process.stderr.readline().split()
        yield next(word for word in words if word.startswith("http://"))
        process.terminate()


def ask(url: str, prompt: list[int]) -> tuple[float, str]:
    """Return the seconds to the first token of an answer, as its client sees them, and the answer."""
    asked = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
    body = json.dumps(asked).encode()
    request = Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    started, first, text = time.perf_counter(), 0.0, ""
    with urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
    return first, text


def forget(folder: Path) -> int:
    """Let the system drop the files of a folder from its memory; return their bytes."""
    total = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            total += path.stat().st_size
    return total


@click.command()
@click.argument("bundle", type=Path)
@click.argument("text", type=Path)
@click.option("--tokens", default=4000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--cold", is_flag=True, help="Read the files from the disk, not from the system's memory.")
def main(bundle: Path, text: Path, tokens: int, rounds: int, threads: int, cold: bool) -> None:
    """Measure the time to the first token of BUNDLE, for a prompt that is read anew and one that is on disk."""
    prompt = load_tokenizer(bundle).encode(read_text(text)).ids[:tokens]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        with server(bundle, cache, threads, 100) as url:
            _, expected = ask(url, prompt)
        seconds: dict[float, list[float]] = {0: [], 100: []}
        for number in range(rounds):
            for gigabytes in sorted(seconds, reverse=number % 2 == 0):
                if cold:
                    forget(cache)
                with server(bundle, cache, threads, gigabytes) as url:
                    first, answer = ask(url, prompt)
                if answer != expected:
                    raise AssertionError(f"with {gigabytes} GB the answer is {answer!r}; expected {expected!r}")
                seconds[gigabytes].append(first)
        size = forget(cache)
    anew, restored = (statistics.median(values) for values in seconds.values())
    ratios = [one / other for one, other in zip(seconds[100], seconds[0], strict=True)]
    click.echo(f"{len(prompt)} tokens, {size / 1e6:.0f} MB on disk; seconds to the first token, {rounds} rounds:")
    click.echo(f"read anew {anew:.2f}, restored {restored:.2f}: {statistics.median(ratios):.3f} of it")
    click.echo(f"(from {min(ratios):.3f} to {max(ratios):.3f}; the answers are the same)")


if __name__ == "__main__":
    main()

"""`recycle-onnx batch`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from recycle_onnx.cli import options
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, progress
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.temporary import lock
from recycle_onnx.untrusted import check_regular

if TYPE_CHECKING:
    from recycle_onnx.batch import Answer, Request, Worker


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("prompts", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="JSON lines to write, an answer for each prompt.")
@click.option("--resume", is_flag=True, help="Go on with OUTPUT where a former run was interrupted or killed.")
@click.option("--force", is_flag=True, help="Replace OUTPUT.")
@click.option("--workers", type=int, default=1, show_default=True, help="Prompts at a time; they share the model.")
@options.controls
@options.logprobs("Written into each answer, with its tokens.")
@options.loading
@click.option("--json", "json_", is_flag=True, help="Print the summary as one JSON object.")
def batch(
    bundle: Path,
    prompts: Path,
    output: Path,
    resume: bool,
    force: bool,
    workers: int,
    json_: bool,
    **settings: Any,
) -> None:
    """Answer many PROMPTS, a file of JSON lines, with the model in BUNDLE.

    A line is {"prompt": …} or {"messages": […]}, perhaps with an "id" (otherwise its line's number) and settings of
    its own, by the names of the options ("max_new_tokens"). A line that cannot be answered gets an "error" in place
    of a text: it makes no sense, has a setting out of range, or a prompt that is too long. All other lines are
    answered, and the exit code is then 1. A file without any line that makes sense is refused.
    With several --workers each session has one thread unless --threads says otherwise.
    """
    from recycle_onnx.batch import Worker, read_requests

    if workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    requests = read_requests(prompts)
    if output.exists() and not (resume or force):
        raise InputError(f"{output} exists; give another name, --resume to go on with it, or --force to replace it")
    check_regular(output)
    if output.exists() and output.samefile(prompts):
        raise InputError(f"{output} is the file of the prompts; give another name")
    settings["threads"] = settings["threads"] or (1 if workers > 1 else None)
    model = options.load(bundle, settings)
    config = options.config(model, settings)
    worker = Worker(model, config)
    worker.check(requests)
    options.note_module(model, config)
    try:
        with output.open("ab") as file:
            _claim(file, output, replaces=resume or force)
            summary = _start(file, output, requests, resume=resume and not force)
            _answer(worker, requests[summary.resumed :], workers, file, summary)
    except OSError as error:
        raise RecycleError(f"{output}: cannot write ({error.strerror or error}); --resume goes on") from error
    except KeyboardInterrupt as interruption:
        # not `summary.written`: the last line may have been written and not counted yet
        written = output.read_bytes().count(b"\n") if output.exists() else 0
        text = f"interrupted after {written} of {len(requests)} lines; --resume goes on"
        raise KeyboardInterrupt(text) from interruption
    click.echo(as_json(summary.to_json()) if json_ else summary.text)
    if failed := summary.failed + summary.failed_before:
        raise RecycleError(f"{failed} of {summary.lines} lines failed; their error is in {output}")


def _claim(file: IO[bytes], output: Path, *, replaces: bool) -> None:
    """Make sure that nobody else writes it, from now on; where locks are known."""
    try:
        free = lock(file.fileno())
    except OSError:
        free = True
    if not free:
        raise InputError(f"{output} is being written by another process; wait for it, or give another name")
    if not replaces and output.stat().st_size:
        raise InputError(f"{output} was made by another process in the meantime; give another name, or --resume")


def _start(file: IO[bytes], output: Path, requests: Sequence[Request], *, resume: bool) -> Summary:
    """Count the lines that a former run answered; empty a file that does not go on from one."""
    from recycle_onnx.batch import Finished, finished

    before = finished(output, requests) if resume else Finished()
    summary = Summary(len(requests), before.lines, before.failed)
    if not summary.resumed and output.stat().st_size:
        file.truncate(0)
    return summary


def _answer(worker: Worker, requests: Sequence[Request], workers: int, file: IO[bytes], summary: Summary) -> None:
    """Write an answer for each of the requests, and count it."""
    from recycle_onnx.batch import answers

    with progress("answering") as report, closing(answers(worker, requests, workers)) as made:
        for answer in made:
            file.write(f"{answer.line}\n".encode())
            file.flush()
            summary.count(answer)
            report(summary.written, summary.lines, summary.note)


@dataclass
class Summary:
    """The outcome of a run: lines in all, those that a former run had answered, and its own work.

    Errors of the former run are counted too.
    """

    lines: int
    resumed: int
    failed_before: int = 0
    answered: int = 0
    failed: int = 0
    new_tokens: int = 0
    recycled_tokens: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def count(self, answer: Answer) -> None:
        """Count an answered or failed line."""
        if answer.result is None:
            self.failed += 1
            return
        self.answered += 1
        self.new_tokens += answer.result.stats.new_tokens
        self.recycled_tokens += sum(answer.result.recycled)

    @property
    def written(self) -> int:
        """The number of lines that are in the output."""
        return self.resumed + self.answered + self.failed

    @property
    def seconds(self) -> float:
        """The wall time so far, without loading."""
        return time.perf_counter() - self._started

    @property
    def note(self) -> str:
        """The tokens per second of all workers together."""
        return f"{self.new_tokens / self.seconds:.0f} tokens/s"

    @property
    def text(self) -> str:
        """The summary for people."""
        before = f" ({self.resumed} lines were done before)" if self.resumed else ""
        return (
            f"{self.answered} answers of {self.new_tokens} tokens, {self.recycled_tokens} recycled, "
            f"in {self.seconds:.1f} s, {self.note}{before}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain values; `seconds` without loading."""
        seconds = self.seconds
        return {
            "lines": self.lines,
            "resumed": self.resumed,
            "failed_before": self.failed_before,
            "answered": self.answered,
            "failed": self.failed,
            "new_tokens": self.new_tokens,
            "recycled_tokens": self.recycled_tokens,
            "seconds": seconds,
            "tokens_per_second": self.new_tokens / seconds,
        }

"""How verbs report: one JSON object, or lines for people."""

from __future__ import annotations

import codecs
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

import click
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.text import Text

from recycle_onnx.progress import Progress, silent
from recycle_onnx.untrusted import UNPRINTABLE, printable

SECONDS_BETWEEN_LINES = 10.0
"""Where progress is no bar, logs of long work stay short."""
ESCAPED = {code: f"\\u{code:04x}" for code in UNPRINTABLE}
"""JSON says the same with the escape, and no terminal obeys it."""


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Write a line for people, whatever file or model its words come from."""
    click.echo(printable(text), err=err, nl=nl)


def shown(value: object) -> Text:
    """Make a value fit for one of rich's tables: nothing in it is markup, and nothing drives the terminal."""
    return Text(printable(str(value)))


def next_step(*words: object) -> None:
    """Say which command comes next, so that a shell takes it as it is."""
    echo(f"next: recycle-onnx {shlex.join(map(str, words))}")


class _Printable(logging.Formatter):
    """A log formatter that makes warnings printable: they quote names and values of files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def show_warnings() -> None:
    """Let warnings through to standard error, printable, unless an application has a handler of its own."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())


def writable_anyhow() -> None:
    """Let every text be written: in UTF-8, unless a terminal or PYTHONIOENCODING has another encoding.

    That one shows `?` for what it does not have. ASCII is nobody's choice, but what systems without a locale say.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, TextIOWrapper):  # an application's own, or none
            continue
        chosen = stream.isatty() or os.environ.get("PYTHONIOENCODING")
        keep = chosen and codecs.lookup(stream.encoding).name != "ascii"
        stream.reconfigure(encoding=stream.encoding if keep else "utf-8", errors="replace")


def as_json(value: object) -> str:
    """Write indented JSON with text as it is, but for what a terminal would not show as it is.

    Where standard output is not UTF-8 everything beyond ASCII is escaped.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = codecs.lookup(encoding).name != "utf-8"
    return json.dumps(value, indent=2, ensure_ascii=ascii_only).translate(ESCAPED)


def is_main_process() -> bool:
    """Tell whether this process reports: always, unless `accelerate launch` or torchrun started others too."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Give a callback that shows a bar on a terminal, a line every few seconds otherwise, on standard error.

    Of several processes that were launched together only the main one shows it.
    """
    if not is_main_process():
        yield silent
        return
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda completed, total, note: bar.update(
            task, completed=completed, total=total, note=escape(printable(note))
        )


def _lines(title: str) -> Progress:
    last = 0.0

    def update(completed: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if completed < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        echo(f"{title} {completed}/{total} {note}".rstrip(), err=True)

    return update


def _stage_lines() -> Progress:
    last, current = time.monotonic(), ""

    def report(completed: int, total: int, text: str) -> None:
        nonlocal last, current
        stage, _, _ = text.partition(": ")
        now = time.monotonic()
        if stage == current and now - last < SECONDS_BETWEEN_LINES:
            return
        known = f"{text}: {completed / total:.0%}" if total else text
        echo(known if stage == current else stage, err=True)
        last, current = now, stage

    return report


@contextmanager
def stages() -> Iterator[Progress]:
    """Give a callback that shows stages, named `stage` or `stage: detail`.

    On a terminal that is a spinner, with a bar where the total is known; otherwise a line a stage, and details every
    few seconds. All of it goes to standard error.
    """
    if not sys.stderr.isatty():
        yield _stage_lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), _Known(BarColumn()), _Known(TaskProgressColumn()),
               _Known(TimeRemainingColumn()))  # fmt: skip
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the checkpoint", total=None)
        current = ""

        def report(completed: int, total: int, text: str) -> None:
            nonlocal current
            stage, _, _ = text.partition(": ")
            if stage != current:
                bar.reset(task)
            bar.update(task, description=escape(printable(text)), completed=completed, total=total or None)
            current = stage

        yield report


class _Known(ProgressColumn):
    """A progress column that is there only where the total is known."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self.column = column

    def render(self, task: Task) -> RenderableType:
        return self.column(task) if task.total else ""

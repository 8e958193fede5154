"""How verbs report: one JSON object, or lines for people."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


def as_json(value: object) -> str:
    """Indented JSON with text as it is."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def is_main_process() -> bool:
    """Whether this is the one that reports: always, unless `accelerate launch` or torchrun started others too."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give `update(done, total, note)`: a bar on a terminal, a line every few seconds otherwise, on standard error.

    Of several processes that were launched together only the main one shows it.
    """
    if not is_main_process():
        yield lambda done, total, note: None
        return
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _lines(title: str) -> Callable[[int, int, str], None]:
    last = 0.0

    def update(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        click.echo(f"{title} {done}/{total} {note}".rstrip(), err=True)

    return update


def _stage_lines() -> Callable[[str], None]:
    last, current = time.monotonic(), ""

    def report(text: str) -> None:
        nonlocal last, current
        stage, _, _ = text.partition(": ")
        now = time.monotonic()
        if stage == current and now - last < SECONDS_BETWEEN_LINES:
            return
        click.echo(text if stage == current else stage, err=True)
        last, current = now, stage

    return report


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Give `report(stage)` or `report("stage: detail")`: a spinner on a terminal, otherwise a line a stage.

    Details come every few seconds. All of it goes to standard error.
    """
    if not sys.stderr.isatty():
        yield _stage_lines()
        return
    with Console(stderr=True).status("reading the checkpoint") as status:
        yield lambda stage: status.update(stage)

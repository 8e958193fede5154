"""The `recycle-onnx` command: its verbs, and how errors leave it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from recycle_onnx import __version__
from recycle_onnx.cli.report import echo, show_warnings, writable_anyhow
from recycle_onnx.errors import RecycleError
from recycle_onnx.extras import extra_of, install_command, is_installed

VERBS = (
    "run", "attach", "create", "train", "conventions", "publish", "export", "quantize", "mtp", "inspect", "generate",
    "chat", "batch", "embed", "serve", "bench", "calibrate", "eval", "doctor",
)  # fmt: skip
"""In the order of the work; `--help` keeps it."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it: 128 and the signal's number."""
INDENTATION = 6
"""Columns that click leaves empty before a verb's name and around its description."""
EXTRA_OF_VERB = {
    "run": "export", "attach": "export", "create": "export", "train": "train", "conventions": "export",
    "publish": "export", "export": "export", "quantize": "export", "mtp": "export", "chat": "chat", "serve": "serve",
}  # fmt: skip
"""The extra that a verb needs; `chat` needs it where the model has a chat template, which most have."""


class Verbs(click.Group):
    """A group of commands that imports a verb's file when it is asked for.

    Errors leave it as one line and an exit code.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        if name not in VERBS:
            raise click.UsageError(f"No such command {name!r}; expected one of: {', '.join(VERBS)}.", ctx)
        attribute = "eval_" if name == "eval" else name
        command = getattr(importlib.import_module(f"recycle_onnx.cli.{name}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs; those whose extra is not installed say so."""
        width = formatter.width - max(map(len, VERBS)) - INDENTATION
        missing = {extra for extra in EXTRA_OF_VERB.values() if not is_installed(extra)}
        rows = []
        for verb in VERBS:
            help_ = self.get_command(ctx, verb).get_short_help_str(width)
            extra = EXTRA_OF_VERB.get(verb)
            rows.append((verb, f"{help_} [extra {extra!r} is not installed]" if extra in missing else help_))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        if missing:
            formatter.write_paragraph()
            formatter.write_text(f"To install an extra: {install_command('NAME')}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # --debug may stand behind the verb too, where people add it
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args = ["--debug", *(arg for arg in own if arg != "--debug"), *args[len(own) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        writable_anyhow()
        show_warnings()
        try:
            with _termination_as_interruption():
                return super().invoke(ctx)
        except click.UsageError as error:
            command = (error.ctx or ctx).command_path
            _end(f"{error.format_message()} See: {command} --help", error.exit_code)
        except KeyboardInterrupt as interruption:
            if ctx.params["debug"]:
                raise
            _end(str(interruption) or "interrupted", INTERRUPTED)
        except BrokenPipeError:
            # the reader (`head`, a closed pager) has had enough; keep Python from complaining at exit
            sys.stdout = None
            sys.exit(0)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            _end(_describe(error, ctx.invoked_subcommand), getattr(error, "exit_code", 1))


@contextmanager
def _termination_as_interruption() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C within the block, so that nothing half-written stays behind."""
    # processes that were launched together are their launcher's to end, and may wait for each other
    if "LOCAL_RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(error: BaseException, verb: str | None) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).partition(".")[0]
        extra = extra_of(package, EXTRA_OF_VERB.get(verb or ""))
        # without an extra it is a part of the plain install, or of a package that we depend on
        command = install_command(extra) if extra else "pip install --force-reinstall recycle-onnx"
        return f"needs {package}, which is not installed; try: {command}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    if isinstance(error, RecycleError | OSError | ImportError):
        return str(error)
    return f"unexpected {type(error).__name__} ({error}); please report it with what `recycle-onnx --debug …` shows"


def _end(message: str, code: int) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of processes that were launched together, one a machine speaks
        echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="recycle-onnx")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Give a language model a recyclable module, export both halves to ONNX, and run them together."""

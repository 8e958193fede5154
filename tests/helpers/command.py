"""Runs `recycle-onnx` as a user does, and says what an error must look like."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

from click.testing import CliRunner, Result

from recycle_onnx.cli import main

# what a command writes to standard error is kept apart from its output, always so since click 8.2
_separate = "mix_stderr" in signature(CliRunner).parameters
RUNNER = CliRunner(mix_stderr=False) if _separate else CliRunner()
PROGRESS = (
    "writing ",
    "checking ",
    "tokenising ",
    "training ",
    "note: ",
    "the base writes",
    "the base reads",
    "reading it",
)


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run the command in this process."""
    return RUNNER.invoke(main, [str(argument) for argument in arguments], input=stdin)


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on standard error that holds `words`, nothing on standard output, and the exit code."""
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    assert_one_error(result.stderr, *words)


def assert_one_error(stderr: str, *words: str) -> None:
    errors = [line for line in stderr.splitlines() if not line.startswith(PROGRESS)]
    assert len(errors) == 1, stderr
    assert errors[0].startswith("Error: ")
    for word in words:
        assert word in errors[0], (word, errors[0])


def names(folder: Path) -> list[str]:
    """Names of everything in a folder, hidden leftovers included."""
    return sorted(path.name for path in folder.iterdir())

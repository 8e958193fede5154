"""Verbs whose first argument may be a folder, a GGUF file or a hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from recycle_onnx.cli.report import echo
from recycle_onnx.errors import InputError

OPTION = "--from-gguf"
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class FromSource(click.Command):
    """A verb where `--from-gguf FILE` stands for FILE as the first argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _file_first(args))


def source_options(function: Decorated) -> Decorated:
    """Add `--from-gguf`, which FromSource takes out of the arguments, `--revision` and `--adapter`."""
    function = click.option(
        OPTION, metavar="FILE", expose_value=False, help="A GGUF file, which may as well stand as the first argument."
    )(function)
    return click.option("--revision", help="Branch, tag or commit of a model on the Hugging Face hub.")(
        adapting(function)
    )


def adapting(function: Decorated) -> Decorated:
    """Add `--adapter`."""
    option = click.option(
        "--adapter", type=Path, metavar="FOLDER", help="A LoRA adapter of PEFT's, to merge into the base."
    )
    return option(function)


def note(text: str) -> None:
    """Tell the user something on standard error."""
    echo(f"note: {text}", err=True)


def _file_first(args: list[str]) -> list[str]:
    own = args[: args.index("--")] if "--" in args else args
    for index, arg in enumerate(own):
        name, equals, value = arg.partition("=")
        if name != OPTION:
            continue
        file, rest = (value, args[index + 1 :]) if equals else (own[index + 1 : index + 2], args[index + 2 :])
        path = "".join(file)
        if not Path(path).is_file():
            raise InputError(f"{OPTION} {path}: no such file; expected a GGUF model")
        return [path, *args[:index], *rest]
    return args

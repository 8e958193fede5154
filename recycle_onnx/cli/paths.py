"""Names of files, folders and models on the command line: an empty one, of an unset variable say, is a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recycle_onnx.errors import InputError


class NotEmpty(click.ParamType):  # type: ignore[type-arg]  # older versions of click have no argument for it
    """A text with something in it; `expected` says what, in an error."""

    def __init__(self, name: str, expected: str) -> None:
        self.name, self.expected = name, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text.

        Raises:
            InputError: there is nothing in it.
        """
        if isinstance(value, str) and not value.strip():
            raise InputError(f"{_name_of(param)} is empty; expected {self.expected}")
        return value


class NotEmptyPath(NotEmpty):
    """A path that is not empty: `Path("")` would be the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            InputError: it is empty.
        """
        return Path(super().convert(value, param, ctx))


def _name_of(param: click.Parameter | None) -> str:
    """Name an argument or option as its help does."""
    if isinstance(param, click.Argument):
        return param.metavar or str(param.name).upper()
    return param.opts[0] if param else "the name"


PATH = NotEmptyPath("path", "the name of a file or folder")
SOURCE = NotEmpty("text", "a folder, a GGUF file or a hub id")

"""Options of the command line that are made from declarations of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from recycle_onnx.declaration import Setting
from recycle_onnx.kinds import Biases, Choice, Flag, Kind, Name, Number, Strings, TokenIds

Command = TypeVar("Command", bound=Callable[..., Any])
METAVARS = {Biases: "ID=BIAS", TokenIds: "ID"}


def option_of(
    name: str, about: Setting, *, unset: str, other_names: tuple[str, ...] = (), default: Any = None
) -> Callable[[Command], Command]:
    """Make the option of a setting. Without it its value is `default`; `unset` says what None or nothing means."""
    kind, repeated = about.kind, isinstance(about.kind, Biases | Strings | TokenIds)
    texts = [
        about.help,
        f"{', '.join(kind.names)}." if isinstance(kind, Name) else "",
        "May be repeated." if repeated else "",
        f" [default: {unset}]" if unset else "",
    ]
    return click.option(
        about.option or f"--{name.replace('_', '-')}",
        *other_names,
        name,
        help=" ".join(filter(None, texts)),
        type=_type(kind),
        is_flag=isinstance(kind, Flag),
        multiple=repeated,
        metavar=METAVARS.get(type(kind)),
        default=default,
        show_default=default is not None and default is not False,
    )


def _type(kind: Kind) -> Any:
    if isinstance(kind, Choice):
        return click.Choice(kind.words)
    if isinstance(kind, Flag):
        return bool
    if isinstance(kind, Number | TokenIds):
        return int if isinstance(kind, TokenIds) or kind.whole else float
    return str

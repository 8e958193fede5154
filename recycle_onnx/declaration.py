"""Settings that are declared once, as fields of a dataclass: checks, options and tables follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from inspect import cleandoc
from textwrap import TextWrapper
from typing import Any, TypeVar

from recycle_onnx.kinds import Kind

Value = TypeVar("Value")
Class = TypeVar("Class", bound=type)
METADATA = "setting"
"""Where a dataclass's field keeps its declaration."""
WIDTH = 100
"""Columns that `help()` fills a setting's meaning to."""


@dataclass(frozen=True)
class Setting:
    """A setting's declaration, beside its name and type.

    `help` is one text for every reader. `origin` names whose setting it is. `unset` says what the default means, where
    that is not a value. `in_file` settings may stand in generation_config.json. `served` is what the server takes of
    it, None for nothing. `option` is what the command line calls it, where that is not its name.
    """

    default: Any
    kind: Kind
    help: str
    origin: str = ""
    unset: str = ""
    in_file: bool = False
    served: Kind | None = None
    option: str = ""


def setting(
    default: Value,
    kind: Kind,
    help: str,  # noqa: A002 # as click calls it
    *,
    origin: str = "",
    unset: str = "",
    in_file: bool = False,
    served: Kind | bool = False,
    option: str = "",
) -> Value:
    """Declare a field of a dataclass as a setting; it is `served` as its kind, as another one, or not at all."""
    wire = (kind if served else None) if isinstance(served, bool) else served
    about = Setting(default, kind, help, origin, unset, in_file, wire, option)
    if type(default).__hash__ is None:  # which dataclasses refuse as a default, though ours cannot be changed
        return field(default_factory=lambda: default, metadata={METADATA: about})
    return field(default=default, metadata={METADATA: about})


def declared(kind: type) -> dict[str, Setting]:
    """Return the settings that a dataclass declares, by name, in order."""
    return {f.name: f.metadata[METADATA] for f in fields(kind) if METADATA in f.metadata}


def documented(kind: Class) -> Class:
    """Add to a dataclass's docstring what is declared of its settings, for `help` to list."""
    wrapped = TextWrapper(WIDTH, initial_indent=4 * " ", subsequent_indent=8 * " ", break_on_hyphens=False)
    lines = (
        wrapped.fill(f"{name}: {about.help} Default: {about.unset or repr(about.default)}.")
        for name, about in declared(kind).items()
    )
    kind.__doc__ = "\n".join([cleandoc(kind.__doc__ or ""), "", "Attributes:", *lines])
    return kind

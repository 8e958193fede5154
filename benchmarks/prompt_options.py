"""The options of benchmarks that answer prompts on bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from recycle_onnx.cli.options import pairs

REPEATED = "May be repeated."


@dataclass(frozen=True)
class PromptOptions:
    """The options that every such benchmark has, by their names on the command line."""

    bundles: tuple[str, ...]
    files: tuple[Path, ...]
    field: str | None
    limit: int
    new_tokens: int
    temperature: float
    threads: int

    @property
    def folders(self) -> dict[str, Path]:
        """Bundles by the names that they were called."""
        return {name: Path(folder) for name, folder in pairs("bundle", self.bundles, "int4=my-bundle").items()}

    @property
    def temperatures(self) -> tuple[float, float]:
        """Of greedy texts, and of others."""
        return 0.0, self.temperature


def prompt_options(limit: int, new_tokens: int, threads: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds a benchmark's folder and the options above, with these defaults."""
    declared = (
        click.argument("work", type=Path),
        click.option(
            "--bundle", "bundles", multiple=True, required=True, metavar="NAME=BUNDLE", help="May be repeated."
        ),
        click.option("--prompts", "files", multiple=True, required=True, type=Path, help=REPEATED),
        click.option("--field", help="Where each line of JSON has its prompt."),
        click.option("--limit", default=limit, show_default=True, help="Most prompts."),
        click.option("--new-tokens", default=new_tokens, show_default=True),
        click.option("--temperature", default=0.8, show_default=True, help="Of seeded texts, beside greedy ones."),
        click.option("--threads", default=threads, show_default=True),
    )

    def declare(command: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(declared):
            command = one(command)
        return command

    return declare

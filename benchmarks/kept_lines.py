"""Results that a program keeps, a line of JSON each, so that it goes on where it broke off: by number, or by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def kept_lines(path: Path, count: int, make_from: Callable[[int], Iterable[Line]]) -> list[Line]:
    """Return the first `count` results of `path`; `make_from` makes those from a number on, where they are missing."""
    kept = lines_of(path)
    if len(kept) < count:
        with path.open("a") as file:
            for line in make_from(len(kept)):
                file.write(json.dumps(line) + "\n")
                file.flush()
                kept.append(line)
    return kept[:count]


def kept_by_name(path: Path, names: Iterable[str], make: Callable[[list[str]], Iterable[Line]]) -> dict[str, Line]:
    """Return the results of `names`, each a line of `path` with its `name`; `make` makes those of the missing ones."""
    wanted, kept = list(names), {line["name"]: line for line in lines_of(path)}
    if missing := [name for name in wanted if name not in kept]:
        with path.open("a") as file:
            for name, line in zip(missing, make(missing), strict=True):
                kept[name] = {"name": name, **line}
                file.write(json.dumps(kept[name]) + "\n")
                file.flush()
    return {name: kept[name] for name in wanted}


def lines_of(path: Path) -> list[Line]:
    """Read all results of a file; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

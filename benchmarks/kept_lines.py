"""Results that a program keeps, a line of JSON each, so that it goes on where it broke off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def kept_lines(path: Path, count: int, make_from: Callable[[int], Iterable[Line]]) -> list[Line]:
    """Return the first `count` results of `path`; `make_from` makes those from a number on, where they are missing."""
    kept: list[Line] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len(kept) < count:
        with path.open("a") as file:
            for line in make_from(len(kept)):
                file.write(json.dumps(line) + "\n")
                file.flush()
                kept.append(line)
    return kept[:count]

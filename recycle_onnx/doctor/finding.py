"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["broken", "advice"]


@dataclass(frozen=True)
class Finding:
    """Something `broken`, or `advice` on what could be better: what was seen, why it matters, what to do."""

    level: Level
    what: str
    why: str
    do: str

"""How long work tells what it is at."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
"""Told a stage as it begins, or `stage: detail`."""

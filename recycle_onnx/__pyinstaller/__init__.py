"""What PyInstaller has to know of this package; it finds the folder by the entry point of pyproject.toml."""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """Return the folders with hooks."""
    return [str(Path(__file__).parent)]

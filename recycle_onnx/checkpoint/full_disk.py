"""A disk that is full, as safetensors says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def disk_errors() -> Iterator[None]:
    """Let a safetensors file that cannot be written be an OSError, as any other file is."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error

"""Text files and JSON lines, plain or gzipped, as documents, one at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from zlib import error as ZlibError

from recycle_onnx.errors import InputError
from recycle_onnx.untrusted import parse_json

SEPARATOR = "<|endoftext|>"
"""GPT-2's token for the end of a text, which corpora such as TinyStories have between theirs."""


def read_documents(paths: Sequence[Path], field: str = "text") -> Iterator[str]:
    """Yield documents in order: parts between `<|endoftext|>` of text files, the `field` of JSON lines (.jsonl).

    Raises:
        InputError: a file is missing, is not text, or a line has no such field; or no file holds any text.
    """
    is_empty = True
    for path in paths:
        for document in _documents(path, field):
            if text := document.strip():
                is_empty = False
                yield text
    if is_empty:
        raise InputError(f"{', '.join(map(str, paths))}: no text; expected UTF-8 text, documents split by {SEPARATOR}")


def _documents(path: Path, field: str) -> Iterator[str]:
    try:
        with _open(path) as file:
            yield from _texts(path, file, field) if ".jsonl" in path.suffixes else _split(file)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    except (gzip.BadGzipFile, EOFError, ZlibError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); fetch it again") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _split(file: TextIO) -> Iterator[str]:
    parts: list[str] = []
    for line in file:
        first, *others = line.split(SEPARATOR)
        parts.append(first)
        for other in others:
            yield "".join(parts)
            parts = [other]
    yield "".join(parts)


def json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield number and value of every line that is not blank; `path` says in errors where the lines are from.

    Raises:
        InputError: a line is not JSON.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from error


def _texts(path: Path, file: TextIO, field: str) -> Iterator[str]:
    for number, value in json_lines(path, file):
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise InputError(f"{path}, line {number}: no text in {field!r} (found: {known}); name another with --field")
        yield text

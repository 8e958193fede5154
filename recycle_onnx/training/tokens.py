"""Documents to token ids, once: the ids are kept in the user's cache and mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recycle_onnx.cache import cache_folder
from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256, temporary_sibling
from recycle_onnx.tokenizer import load_tokenizer

Tokens = NDArray[np.uint32]
AT_ONCE = 512
"""Documents that are tokenised together."""


def tokenise(folder: Path, paths: Sequence[Path], vocab_size: int, field: str, notice: Callable[[str], None]) -> Tokens:
    """Return the ids of all documents in one row, mapped, with the special tokens of the tokenizer in `folder`.

    Raises:
        InputError: a file is not text, or the tokenizer knows more tokens than the model.
        RecycleError: the cache cannot be written.
    """

    def make() -> Iterator[Tokens]:
        notice(f"tokenising {', '.join(path.name for path in paths)}")
        return _encode(load_tokenizer(folder), read_documents(paths, field), vocab_size)

    return kept(key(folder, paths, field), make)


def kept(name: str, make: Callable[[], Iterator[Tokens]]) -> Tokens:
    """Return the ids that are kept under `name`, mapped; make them first if there are none yet.

    Raises:
        RecycleError: the cache cannot be written.
    """
    path = cache_folder() / "tokens" / f"{name}.u32"
    if not path.exists():
        with temporary_sibling(path) as work:
            with (work / path.name).open("wb") as file:
                for ids in make():
                    file.write(ids.tobytes())
            (work / path.name).replace(path)
    return np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)


def _encode(tokenizer: Tokenizer, documents: Iterator[str], vocab_size: int) -> Iterator[Tokens]:
    while part := list(islice(documents, AT_ONCE)):
        for encoding in tokenizer.encode_batch_fast(part):
            ids = np.asarray(encoding.ids, np.uint32)
            if ids.size and ids.max() >= vocab_size:
                raise InputError(
                    f"the tokenizer gives id {ids.max()}, but the model's vocabulary ends at {vocab_size - 1}"
                )
            yield ids


def key(folder: Path, paths: Sequence[Path], field: str) -> str:
    """Return what the ids depend on as one hash: the tokenizer, and which files at which time."""
    load_tokenizer(folder)  # refuses a missing or damaged one
    parts = [sha256(folder / "tokenizer.json"), field]
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such text file") from error
        parts.append(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

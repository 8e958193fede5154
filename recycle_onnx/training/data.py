"""Text files to batches of token ids."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recycle_onnx.errors import InputError

SEPARATOR = "<|endoftext|>"


def read_documents(paths: Sequence[Path]) -> list[str]:
    """Read UTF-8 text files, plain or gzipped, with `<|endoftext|>` between documents.

    Raises:
        InputError: a file is missing, is not text, or all are empty.
    """
    documents = [piece.strip() for path in paths for piece in _read_text(path).split(SEPARATOR)]
    documents = [document for document in documents if document]
    if not documents:
        raise InputError(f"{', '.join(map(str, paths))}: no text; expected UTF-8 text, documents split by {SEPARATOR}")
    return documents


def _read_text(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such text file") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error


def encode(tokenizer: Tokenizer, documents: Sequence[str], vocab_size: int) -> NDArray[np.int64]:
    """Token ids of all documents in one row, with the special tokens that the tokenizer adds to a prompt.

    Raises:
        InputError: the tokenizer knows more tokens than the model.
    """
    encodings = tokenizer.encode_batch_fast(list(documents))
    ids = np.concatenate([np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings])
    if ids.size and ids.max() >= vocab_size:
        raise InputError(f"the tokenizer gives id {ids.max()}, but the model's vocabulary ends at {vocab_size - 1}")
    return ids


@dataclass(frozen=True)
class Corpus:
    """Token ids to train on, and others that are only measured."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def batches(self, batch_size: int, length: int, seed: int) -> Iterator[torch.Tensor]:
        """Endless random windows [batch_size, length] of the training text; the seed decides all of them."""
        generator = np.random.default_rng(seed)
        while True:
            starts = generator.integers(0, len(self.train) - length + 1, batch_size)
            yield torch.from_numpy(np.stack([self.train[start : start + length] for start in starts]))

    def held_out_batches(self, batch_size: int, length: int, limit: int) -> Iterator[torch.Tensor]:
        """At most `limit` windows of the held-out text, in order, without overlap."""
        count = min(len(self.held_out) // length, limit)
        windows = torch.from_numpy(self.held_out[: count * length].reshape(count, length))
        yield from torch.split(windows, batch_size)


def load_corpus(
    tokenizer: Tokenizer, paths: Sequence[Path], held_out: Sequence[Path], vocab_size: int, length: int
) -> Corpus:
    """Tokenise the files; without held-out files the last 5 % of the documents' tokens are set aside.

    Raises:
        InputError: the text is shorter than a few windows of `length` tokens.
    """
    train = encode(tokenizer, read_documents(paths), vocab_size)
    if held_out:
        rest = encode(tokenizer, read_documents(held_out), vocab_size)
    else:
        cut = len(train) - max(len(train) // 20, length)
        train, rest = train[: max(cut, 0)], train[max(cut, 0) :]
    if min(len(train), len(rest)) < length:
        names = ", ".join(map(str, paths))
        raise InputError(
            f"{names}: {len(train) + len(rest)} tokens; expected at least {2 * length} for this --sequence-length"
        )
    return Corpus(train, rest)

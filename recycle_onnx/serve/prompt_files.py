"""Beginnings of prompts in files: what both halves have read of them once need not be read after a restart either."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx import __version__
from recycle_onnx.cache import cache_folder, make_room
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.machine import processor
from recycle_onnx.runtime import tensor_file
from recycle_onnx.runtime.decoding.decoder import UNREAD, Decoder
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.snapshot_check import check_snapshot
from recycle_onnx.temporary import sweep_folder

FORMAT = "recycle-onnx prompt 1"
FULL, MODULE, STATES = "full.tokens", "recycler.tokens", "states"
"""The tokens that each half has read, and what the module has not read, as a decoder's snapshot calls them."""

Tokens = dict[str, list[int]]
Arrays = dict[str, NDArray[Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptBlock:
    """A file of rows from `start` on, and the token of each row, by half: the module's is the one that comes next."""

    path: Path
    start: int
    tokens: Arrays


@dataclass(frozen=True)
class Unsaved:
    """A copy of the rows of the last block of `chain`, which starts at the beginning of a text."""

    chain: list[PromptBlock]
    arrays: Arrays


class PromptFiles:
    """Rows of both halves for the beginnings of texts, in the user's cache, from where they may be removed at any time.

    A file holds a block of rows, as a saved conversation holds all of them. Its name is a hash of the block's tokens,
    of all those before it, and of what the rows depend on besides. So texts share the files of what they have in
    common, a text that grows adds files and changes none, and servers may share a folder.

    Rows come back to the bit. The rest of a prompt is read from there on, as behind a text that is still in memory.
    """

    def __init__(self, model: Model, limit: float) -> None:
        """Read and write the files of a model; `limit` bounds the bytes of those of all models."""
        self.folder = prompts_folder() / model.bundle.digest[:32]
        self.limit = limit
        self._size = block_size(model)
        self._about = {
            "format": FORMAT,
            "bundle": model.bundle.digest,
            "version": __version__,
            "onnxruntime": ort.__version__,
            "processor": processor.identity(),
            "provider": model.providers,
        }

    def restore(self, decoder: Decoder, prompt: list[int]) -> int:
        """Let a decoder that has read nothing but a beginning of a prompt take over what files know beyond that.

        A file that is damaged or says other things than its name is told of and removed, and ends what is known.

        Returns:
            How many tokens it took over. The prompt's last one is never among them: it is read for its logits.
        """
        known = min(map(len, _tokens_of(decoder).values())) // self._size
        if decoder.has_dropped_rows:
            known = 0
        blocks = self._blocks(_tokens_for(decoder, prompt[:-1], prompt[1:]))
        restored = []
        for block in takewhile(lambda block: block.path.exists(), islice(blocks, known, None)):
            arrays = self._read(block, decoder)
            if arrays is None:
                break
            decoder.restore(arrays, block.start)
            restored.append(block)
        _touch(restored)
        return self._size * len(restored)

    def unsaved(self, decoder: Decoder) -> Unsaved | None:
        """Return the first block that an idle decoder has read and that is in no file.

        Where there is none, the files of its text count as used now. Only rows that both halves have read are saved,
        and none of a decoder that has dropped some.
        """
        chain = []
        if decoder.has_dropped_rows:
            return None
        for block in self._blocks(_tokens_of(decoder)):
            chain.append(block)
            if not block.path.exists():
                return Unsaved(chain, _part(decoder.snapshot(), block.start, block.start + self._size))
        _touch(chain)
        return None

    def write(self, unsaved: Unsaved) -> bool:
        """Write a block, for which files that were used longest ago make room; tell whether there was enough.

        Raises:
            RecycleError: it cannot be written.
        """
        paths = [block.path for block in unsaved.chain]
        needed = sum(array.nbytes for array in unsaved.arrays.values())
        if not make_room(prompts_folder().glob("*/*.safetensors"), needed, self.limit, paths):
            return False
        _make_private(self.folder)
        tensor_file.write(paths[-1], unsaved.arrays, self._about)
        return True

    def sweep(self) -> None:
        """Remove what servers that were killed left half written, whatever their model was."""
        for folder in prompts_folder().glob("*"):
            sweep_folder(folder)

    def _blocks(self, tokens: Tokens) -> Iterator[PromptBlock]:
        """Yield the whole blocks of a text, by the tokens that each half reads of it, whether or not they are saved."""
        # Little-endian on every machine: names of files are hashes of these bytes.
        read = {name: np.array(ids, "<i8") for name, ids in tokens.items()}
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        for start in range(0, min(map(len, read.values())) - self._size + 1, self._size):
            own = {name: ids[start : start + self._size] for name, ids in read.items()}
            for name, ids in own.items():
                key.update(name.encode() + ids.tobytes())
            yield PromptBlock(self.folder / f"{key.hexdigest()[:32]}.safetensors", start, own)

    def _read(self, block: PromptBlock, decoder: Decoder) -> Arrays | None:
        """Return what a file holds; None where that is not what was written."""
        try:
            arrays, about = tensor_file.read(block.path)
            self._check(arrays, about, block, decoder)
        except InputError as error:
            _remove(block.path, error)
            return None
        return arrays

    def _check(self, arrays: Arrays, about: dict[str, str], block: PromptBlock, decoder: Decoder) -> None:
        """Refuse what was saved of other tokens, or by another model, version or processor."""
        for name, expected in self._about.items():
            if (stated := about.get(name)) != expected:
                raise InputError(f"{block.path}: {name} is {stated!r:.100}; expected {expected!r}")
        try:
            check_snapshot(arrays, decoder.full, decoder.recycler)
        except ValueError as error:
            raise InputError(f"{block.path}: {error}") from error
        for name, ids in block.tokens.items():
            if not np.array_equal(arrays[name], ids):
                raise InputError(f"{block.path}: {name} are those of another text")


def block_size(model: Model) -> int:
    """Return the tokens of a file, so many as are read again at worst: half of what the model reads in one run.

    With a whole run, 256, to read the rest of 4000 tokens took longer than to restore all others. Files of fewer tokens
    are more of them.
    """
    return max(1, model.prefill_chunk // 2)


def prompts_folder() -> Path:
    """Return where the prompts of all models lie, in the user's cache."""
    return cache_folder() / "prompts"


def _tokens_of(decoder: Decoder) -> Tokens:
    """Return what each half has read that is true."""
    read = decoder.tokens
    return _tokens_for(decoder, read.full, read.module[: read.true_rows])


def _tokens_for(decoder: Decoder, full: list[int], module: list[int]) -> Tokens:
    return {FULL: full} if decoder.recycler is None else {FULL: full, MODULE: module}


def _remove(path: Path, why: InputError) -> None:
    if not os.path.lexists(path):  # another server has just made room
        return
    logger.warning("ignored, and removed from the cache: %s", why)
    with suppress(OSError):
        path.unlink()


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RecycleError(f"{folder}: cannot make the folder ({error.strerror or error})") from error


def _part(snapshot: Arrays, start: int, end: int) -> Arrays:
    """Copy rows of a snapshot, as a snapshot of their own; hidden states that wait for the module are none of them."""
    whole = {**snapshot, STATES: snapshot[STATES][:0]}
    # Copied: while they are written to disk, the decoder may read another text.
    return {name: _rows(name, array, start, end).copy() for name, array in whole.items()}


def _rows(name: str, array: NDArray[Any], start: int, end: int) -> NDArray[Any]:
    if name == UNREAD:
        return array
    return array[:, start:end] if _axis(name) else array[start:end]


def _axis(name: str) -> int:
    """Return where an array of a snapshot has its rows: tokens [n], states [m, H], keys and values [K, n, D]."""
    return 0 if name in (FULL, MODULE, STATES) else 1


def _touch(chain: list[PromptBlock]) -> None:
    """Note that files were used now, those at the beginning of a text last: without them the others serve nobody."""
    now = time.time_ns()
    for block in chain:
        with suppress(OSError):
            os.utime(block.path, ns=(now - block.start, now - block.start))

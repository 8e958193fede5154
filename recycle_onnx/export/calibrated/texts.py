"""What a model reads to be calibrated: texts of several kinds, and what it writes itself; or the user's own file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from recycle_onnx.bundle import Bundle
from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.export.calibrated.kept_text import Ids
from recycle_onnx.export.calibrated.own_text import write
from recycle_onnx.files import read_text
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.text import encode
from recycle_onnx.script import OPENING, Opening, Script, holds_prompts
from recycle_onnx.tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[1] / "text"
"""Texts that were written for this project; its README says what each is for."""
KINDS = ("prose", "facts", "dialogue", "code")
"""One kind alone overfits: calibrated on an encyclopedia only, a model departs twice as far on books and code."""
OWN = 3
"""One window in so many is written by the model itself."""
WINDOW = 256
"""Tokens of a window."""
FEWEST = 2
"""Tokens a column of the widest matrix, at least: with fewer GPTQ loses to rounding (Olive)."""
MOST = 288
"""Windows of a user's file that scales are tuned on; 73 728 tokens."""
TEMPERATURE = 1.0
"""Of the model's own text: as the model's distribution is, neither sharpened nor flattened."""


def windows(bundle: Bundle, path: Path | None, columns: int, rows: int, threads: int | None, report: Progress) -> Ids:
    """Return token ids [about `rows`, length] of `path`, or of our own texts, for up to `columns` columns.

    Of a file with prompts the model writes the answers itself.

    Raises:
        InputError: `path` is missing, empty, not text or too short.
    """
    length = min(WINDOW, bundle.manifest.context_length)
    if path is None:
        return np.concatenate(list(_mixture(bundle, length, rows, threads, report)))
    if holds_prompts(path):
        script = Script.of(bundle.folder, TEMPERATURE)
        openings = [Opening(o.ids[:length], o.turn) for o in script.openings([path], "text")]
        return write(bundle, _some(openings, rows), script.turns, length, threads, report)
    tokenizer = load_tokenizer(bundle.folder)
    ids = _cut((encode(tokenizer, document) for document in read_documents([path])), length)
    if ids.size < FEWEST * columns:
        raise InputError(
            f"{path}: has {ids.size} tokens in windows of {length}; expected at least {FEWEST * columns} to calibrate "
            f"with, {FEWEST} for each of the {columns} columns of the widest matrix: give more text, or none for ours"
        )
    return ids[_evenly(len(ids), rows)]


def more_windows(bundle: Bundle, path: Path | None, ids: Ids) -> tuple[Ids, bool]:
    """Return more of the text that the windows `ids` are from, and whether the model is to add its own.

    That is all that there is of our own kinds, `MOST` windows of a text file at most, and for prompts `ids` themselves.
    """
    length = ids.shape[1]
    if path is None:
        return np.concatenate(_committed(bundle, length)), True
    if holds_prompts(path):
        return ids, True
    tokenizer = load_tokenizer(bundle.folder)
    available = _cut((encode(tokenizer, document) for document in read_documents([path])), length)
    return available[_evenly(len(available), MOST)], False


def some_committed(bundle: Bundle, length: int, rows: int) -> Ids:
    """Return about `rows` windows [n, length] of our own texts, as many of each kind."""
    kinds = _committed(bundle, length)
    return np.concatenate([ids[_evenly(len(ids), -(-rows // len(kinds)))] for ids in kinds])


def _committed(bundle: Bundle, length: int) -> list[Ids]:
    """Return our own texts, kind by kind, in windows."""
    tokenizer = load_tokenizer(bundle.folder)
    texts = (read_text(FOLDER / f"{kind}.txt") for kind in KINDS)
    return [_cut([encode(tokenizer, part) for part in text.split("\n\n")], length) for text in texts]


def _mixture(bundle: Bundle, length: int, rows: int, threads: int | None, report: Progress) -> Iterable[Ids]:
    kinds = _committed(bundle, length)
    committed = rows - rows // OWN
    share = -(-committed // len(kinds))
    chosen = [ids[_evenly(len(ids), share)] for ids in kinds]
    yield from chosen
    script = _script(bundle)
    if script is None:
        return
    tokenizer = load_tokenizer(bundle.folder)
    paragraphs = read_text(FOLDER / "prose.txt").split("\n\n") + read_text(FOLDER / "facts.txt").split("\n\n")
    begun = [tokenizer.encode(text, add_special_tokens=False).ids[:OPENING] for text in paragraphs]
    going_on = [Opening((*_before(script), *ids), len(script.turns) - 1) for ids in begun]
    own = max(1, rows - sum(map(len, chosen)))
    openings = [script.starts[0] if number % 2 == 0 else going_on[number // 2 % len(going_on)] for number in range(own)]
    yield write(bundle, [Opening(o.ids[:length], o.turn) for o in openings], script.turns, length, threads, report)


def _script(bundle: Bundle) -> Script | None:
    """Return how the model writes by itself; None where its chat template cannot be used here."""
    try:
        return Script.of(bundle.folder, TEMPERATURE)
    except InputError:  # no jinja2, or a template that refuses: the committed texts remain
        return None


def _before(script: Script) -> Sequence[int]:
    """Return what stands before a document."""
    return () if script.chat is not None else script.starts[0].ids


def _cut(documents: Iterable[Sequence[int]], length: int) -> Ids:
    """Cut documents in a row into windows [n, length]; what is left at the end is dropped."""
    ids = np.array([token for document in documents for token in document], np.int64)
    return ids[: len(ids) // length * length].reshape(-1, length)


def _evenly(count: int, wanted: int) -> list[int]:
    """Return places of `wanted` of `count` things, spread evenly; all of them where there are no more."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, wanted))}) if count else []


def _some(openings: Sequence[Opening], rows: int) -> list[Opening]:
    return [openings[place] for place in _evenly(len(openings), rows)]

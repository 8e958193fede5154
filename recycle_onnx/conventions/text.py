"""What a base says of text that it wrote itself: tokens, its best next tokens, and its hidden states at every tap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_TO_KEEP
from recycle_onnx.evaluation.openings import QUESTIONS
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate
from recycle_onnx.runtime.decoding.half import Floats, Half
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.text import encode
from recycle_onnx.tokenizer import load_tokenizer

LENGTH = 256
"""Most tokens of a text: what a module has seen before counts, and longer texts take quadratic time."""
TEMPERATURE = 0.8
"""At which training texts are written too: greedy texts of small models end in loops."""


@dataclass(frozen=True)
class WrittenText:
    """A text of the base's: `ids` [S], its best next token after each `best` [S], hidden states [S, H] by tap."""

    ids: list[int]
    best: NDArray[np.int64]
    states: dict[str, Floats]


def write_texts(full: Half, folder: Path, taps: Sequence[str], tokens: int, report: Progress) -> list[WrittenText]:
    """Let the base write about `tokens` tokens in all; `full` runs its graph, `folder` has its tokenizer."""
    length = min(LENGTH, full.cache.limit)
    count = max(1, round(tokens / length))
    openings = [opening for _, opening in zip(range(count), _openings(folder, length // 2), strict=False)]
    texts = []
    for number, ids in enumerate(_continued(full, openings, length, report)):
        report(number, count, "the base reads what it wrote")
        texts.append(_read(full, ids, taps))
    return texts


def _openings(folder: Path, most: int) -> Iterator[list[int]]:
    """Yield beginnings without end: questions for a base that answers, otherwise the token that begins a text."""
    tokenizer, template = load_tokenizer(folder), ChatTemplate.find(folder)
    asked = [[*(encode(tokenizer, "", True) or [0])[:1]]]
    if template.name != PLAIN:
        texts = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
        asked = [encode(tokenizer, text, template.special_tokens)[-most:] for text in texts]
    while True:
        yield from asked


def _continued(full: Half, openings: Sequence[list[int]], length: int, report: Progress) -> list[list[int]]:
    """Continue all openings to `length` tokens, in one batch: a run for all texts takes little longer than for one.

    Rows of a batch are equally long, so that longer openings lose tokens at their beginning.
    """
    spec, shortest = full.spec, min(map(len, openings))
    ids = np.array([opening[-shortest:] for opening in openings], np.int64)
    choosers = [Sampling(TEMPERATURE, seed=number) for number in range(len(ids))]
    empty = np.zeros((len(ids), spec.num_kv_heads, 0, spec.head_dim), np.float32)
    feeds: dict[str, NDArray[Any]] = {INPUT_IDS: ids, **dict.fromkeys(spec.past_names(), empty)}
    while ids.shape[1] < length:
        report(ids.shape[1], length, "the base writes")
        feeds |= {ATTENTION_MASK: np.ones(ids.shape, np.int64), LOGITS_TO_KEEP: np.array(1)}
        logits, *present = full.session.run([LOGITS, *spec.present_names()], feeds)
        rows = zip(choosers, logits, strict=True)
        chosen = np.array([[chooser.choose(row[-1], ids.shape[1])] for chooser, row in rows], np.int64)
        ids = np.concatenate([ids, chosen], axis=1)
        feeds = {INPUT_IDS: chosen, **dict(zip(spec.past_names(), present, strict=True))}
    texts: list[list[int]] = ids.tolist()
    return texts


def _read(full: Half, ids: list[int], taps: Sequence[str]) -> WrittenText:
    """Read a whole text at once."""
    full.crop(0)
    states = np.empty((len(ids), full.spec.state_size), np.float32)
    best = full.read(ids, None, states, keep=len(ids)).argmax(-1)
    full.crop(0)
    return WrittenText(ids, best, dict(zip(taps, np.split(states, len(taps), axis=1), strict=True)))

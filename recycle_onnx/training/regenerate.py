"""Text that the base writes itself: what a module reads when it is used, and is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.precision import computing
from recycle_onnx.training.tokens import Tokens, kept, key

OPENING = 8
"""Tokens of a document that the base is given to go on from."""
AT_ONCE = 128


def regenerate(
    checkpoint: Checkpoint,
    model: FullModel,
    paths: Sequence[Path],
    *,
    length: int,
    temperature: float,
    seed: int,
    field: str = "text",
    notice: Callable[[str], None] = lambda _: None,
) -> Tokens:
    """Texts of at most `length` tokens that begin as the documents do, sampled from the base; kept in the user's cache.

    Raises:
        InputError: no documents of `OPENING` tokens, or a temperature that is not positive.
    """
    if temperature <= 0:
        raise InputError(f"--temperature is {temperature}; expected more than 0")
    kind = next(model.parameters()).dtype
    how = f"{checkpoint.base_weights.digest()}|{length}|{temperature}|{seed}|{kind}"
    name = hashlib.sha256(f"{key(checkpoint.base_folder, paths, field)}|{how}".encode()).hexdigest()[:32]

    def make() -> Iterator[Tokens]:
        openings = _openings(checkpoint, paths, field)
        ends = _ends(checkpoint.base_folder)
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, len(openings), AT_ONCE):
            notice(f"the base writes its own text: {start} of {len(openings)}")
            part = openings[start : start + AT_ONCE]
            for ids in _continue(model, part, length, temperature, ends, generator):
                yield np.asarray(ids, np.uint32)

    return kept(name, make)


def _openings(checkpoint: Checkpoint, paths: Sequence[Path], field: str) -> Tensor:
    """First tokens of every document that has enough [documents, OPENING]."""
    tokenizer = load_tokenizer(checkpoint.base_folder)
    rows = [tokenizer.encode(document).ids[:OPENING] for document in read_documents(paths, field)]
    rows = [row for row in rows if len(row) == OPENING]
    if not rows:
        raise InputError(f"{', '.join(map(str, paths))}: no document has {OPENING} tokens to go on from")
    return torch.tensor(rows)


def _ends(folder: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists() and (found := read_json(folder / name).get("eos_token_id")) is not None:
            return list(found) if isinstance(found, list) else [found]
    return []


@torch.no_grad()
def _continue(
    model: FullModel, openings: Tensor, length: int, temperature: float, ends: list[int], generator: torch.Generator
) -> Iterator[list[int]]:
    """Each opening to its end token, or to `length` tokens."""
    texts = openings
    length = min(length, model.config.context_length)
    weight = next(model.parameters())
    cache = new_cache(model.config, model.config.num_layers, len(openings), length, weight.device)

    def read(ids: Tensor) -> Tensor:
        with computing(model, weight.device, "bf16" if weight.dtype == torch.bfloat16 else "fp32"):
            logits: Tensor = model(ids.to(weight.device), cache).logits[:, -1]
        return logits.float().cpu()

    logits = read(openings)
    done = torch.zeros(len(openings), dtype=torch.bool)
    while texts.shape[1] < length and not bool(done.all()):
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        texts = torch.cat([texts, token], dim=1)
        done |= torch.isin(token[:, 0], torch.tensor(ends, dtype=torch.long))
        if texts.shape[1] < length:
            logits = read(token)
    for ids in texts.tolist():
        stop = next((place for place in range(OPENING, len(ids)) if ids[place] in ends), len(ids) - 1)
        yield ids[: stop + 1]

"""Held-out bits per byte of base models, and the sample's twenty continuations.

python measure.py bits HELD_OUT.txt BASE...
python measure.py continuations CHECKPOINT HELD_OUT.txt
"""

from __future__ import annotations

import math
import re
from itertools import islice
from pathlib import Path

import click
import torch
from torch.nn import functional

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.documents import read_documents
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.storage import fill

CONTINUATIONS = 20
WORDS = 8
NEW_TOKENS = 60


def load(folder: Path) -> FullModel:
    """Load the base of a checkpoint in torch."""
    with Checkpoint.open(folder, base_only=True) as checkpoint:
        model = FullModel(checkpoint.base)
        fill(model, checkpoint.base_weights, checkpoint.base.tensor_shapes())
    return model.eval()


@torch.no_grad()
def nats(model: FullModel, ids: list[int]) -> float:
    """Negative log-likelihood of a document after its first token, in windows of which half is context."""
    size = model.config.context_length
    total, scored = 0.0, 1
    while scored < len(ids):
        start = max(0, scored - size // 2)
        window = torch.tensor(ids[start : start + size])
        logits = model(window[None, :-1]).logits[0]
        losses = functional.cross_entropy(logits, window[1:], reduction="none")
        total += float(losses[scored - start - 1 :].sum())
        scored = start + len(window)
    return total


@click.group()
def main() -> None:
    """Measure base models on text they were not trained on."""


@main.command()
@click.argument("held_out", type=Path)
@click.argument("bases", type=Path, nargs=-1)
def bits(held_out: Path, bases: tuple[Path, ...]) -> None:
    """Bits per byte of each base on the same documents."""
    documents = [re.sub(" +", " ", document) for document in read_documents([held_out])]
    size = sum(len(document.encode()) for document in documents)
    for base in bases:
        model, tokenizer = load(base), load_tokenizer(base)
        encoded = [tokenizer.encode(document).ids for document in documents]
        tokens = sum(len(ids) - 1 for ids in encoded)
        total = sum(nats(model, ids) for ids in encoded)
        rates = f"{total / math.log(2) / size:.4f} bits/byte, {total / tokens:.4f} nats/token"
        click.echo(f"{base}: {rates} ({tokens} tokens, {size} bytes)")


@main.command()
@click.argument("checkpoint", type=Path)
@click.argument("held_out", type=Path)
@torch.no_grad()
def continuations(checkpoint: Path, held_out: Path) -> None:
    """Greedy continuations of the first words of the first held-out stories, as Markdown."""
    model, tokenizer = load(checkpoint), load_tokenizer(checkpoint)
    for document in islice(read_documents([held_out]), CONTINUATIONS):
        prompt = " ".join(document.split()[:WORDS])
        ids = tokenizer.encode(prompt).ids
        start = len(ids)
        while len(ids) < start + NEW_TOKENS and (len(ids) == start or ids[-1] != 0):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        rest = tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :]
        click.echo(f"1. **{prompt}**{' '.join(rest.splitlines())}")


if __name__ == "__main__":
    main()

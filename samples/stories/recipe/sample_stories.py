"""Sample short stories from a small story model, as text to train the sample on.

    python sample_stories.py BASE OUT.txt --megabytes 12 [--seed 0]

BASE is a Llama-type folder that separates stories by BOS (stories260K does). Stories are drawn at temperature 1, so
that their distribution is the model's own; the last one of a stream is cut.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import click
import torch
from rich.progress import track

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.documents import SEPARATOR
from recycle_onnx.files import read_json, write_bytes
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.storage import fill

BATCH = 512
TOKENS = 500


def sample(model: FullModel, bos: int, generator: torch.Generator) -> list[list[int]]:
    """Draw one batch of token streams; a stream goes on after a story with BOS and the next one."""
    cache = new_cache(model.config, model.config.num_layers, BATCH)
    ids = torch.full((BATCH, 1), bos)
    drawn = []
    for _ in range(TOKENS):
        probabilities = model(ids, cache).logits[:, -1].softmax(-1)
        ids = torch.multinomial(probabilities, 1, generator=generator)
        drawn.append(ids)
    streams = torch.cat(drawn, dim=1).tolist()
    return [list(story) for stream in streams for end, story in groupby(stream, bos.__eq__) if not end]


@click.command()
@click.argument("base", type=Path)
@click.argument("out", type=Path)
@click.option("--megabytes", default=12.0)
@click.option("--seed", default=0)
def main(base: Path, out: Path, megabytes: float, seed: int) -> None:
    """Write about MEGABYTES of stories sampled from BASE to OUT."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = load_tokenizer(base)
    with Checkpoint.open(base) as checkpoint:
        model = FullModel(checkpoint.base)
        fill(model, checkpoint.base_weights, checkpoint.base.tensor_shapes().keys())
    special = read_json(base / "generation_config.json")
    pieces: list[str] = []
    wanted = int(megabytes * 1e6)
    with torch.no_grad():
        for _ in track(range(-(-wanted // 450_000)), "sampling"):
            batch = sample(model, special["bos_token_id"], generator)
            texts = tokenizer.decode_batch(batch)
            pieces += [text.strip() for text in texts if len(text) > 50 and "\ufffd" not in text]
            if sum(map(len, pieces)) >= wanted:
                break
    write_bytes(out, f"\n{SEPARATOR}\n".join(pieces).encode())
    click.echo(f"{out}: {len(pieces)} stories, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

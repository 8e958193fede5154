"""How much sooner texts have their vectors side by side than one at a time.

python benchmarks/embeddings.py BUNDLE [--threads 2] [--rounds 5]

Each round makes the vectors of the same texts in both ways, in turns; printed is the median of the rounds' ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import recycle_onnx
from recycle_onnx.runtime.embedding import Embedder

TEXT = Path(__file__).parents[1] / "docs" / "how-it-works.md"
SHAPES = {
    "5 tokens": (5,) * 48,
    "20 tokens": (20,) * 24,
    "60 tokens": (60,) * 8,
    "5 to 60 tokens": tuple(range(5, 61, 3)),
}


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=int)
@click.option("--rounds", default=5)
def main(bundle: Path, threads: int | None, rounds: int) -> None:
    with recycle_onnx.load(bundle, threads=threads, fixed_threads=True) as model:
        embedder = Embedder(model)
        words = model.encode(TEXT.read_text(encoding="utf-8"))
        for name, lengths in SHAPES.items():
            starts = np.cumsum((0, *lengths))
            texts = [
                words[start % (len(words) - 60) :][:length] for start, length in zip(starts, lengths, strict=False)
            ]
            together, alone = embedder.vectors(texts), np.stack([embedder.vector(text) for text in texts])
            ratios = []
            for _ in range(rounds):
                one_by_one = seconds(lambda texts=texts: [embedder.vector(text) for text in texts])
                ratios.append(one_by_one / seconds(lambda texts=texts: embedder.vectors(texts)))
            difference = np.abs(together - alone).max()
            print(f"{len(texts)} texts of {name}: {np.median(ratios):.2f}x, greatest difference {difference:.1e}")


if __name__ == "__main__":
    main()

"""`recycle-onnx embed`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.cli import options
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, progress, shown
from recycle_onnx.contract import POOLINGS
from recycle_onnx.errors import InputError

if TYPE_CHECKING:
    from recycle_onnx.runtime.decoding.half import Floats

SHOWN = 60
"""Characters of a text in the table."""


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("texts", nargs=-1, required=True, metavar="TEXT…")
@click.option("--pooling", type=click.Choice(POOLINGS), help="How.  [default: the base's own, otherwise mean]")
@click.option("--dimensions", type=int, metavar="N", help="Keep the first N values.  [default: all]")
@options.loading
@click.option("--json", "json_", is_flag=True, help="Print one JSON object with the vectors.")
def embed(
    bundle: Path, texts: tuple[str, ...], pooling: str | None, dimensions: int | None, json_: bool, **settings: Any
) -> None:
    """Make a vector of each TEXT with the model in BUNDLE; a TEXT of - is a text a line of standard input.

    Without --json a table shows how close each text is to the first one: 1 is the same.
    """
    from recycle_onnx.runtime.embedding import Embedder

    lines = [line for text in texts for line in (_lines() if text == "-" else [text])]
    if not lines:
        raise InputError("standard input has no text; expected a text a line")
    model = options.load(bundle, settings)
    embedder = Embedder(model, pooling, dimensions)
    ids = [embedder.ids(line) for line in lines]
    with progress("embedding") as report:
        vectors = model.embed(ids, pooling=pooling, dimensions=dimensions, progress=report)
    tokens = [len(text) for text in ids]
    if not json_:
        Console().print(_table(lines, tokens, vectors))
        return
    rows = zip(lines, tokens, vectors.tolist(), strict=True)
    embeddings = [{"text": text, "tokens": count, "vector": vector} for text, count, vector in rows]
    about = {"model": bundle.resolve().name, "pooling": embedder.pooling, "dimensions": embedder.dimensions}
    click.echo(as_json({**about, "embeddings": embeddings}))


def _lines() -> list[str]:
    """Return the lines of standard input that are not empty."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error})") from error
    return [line for line in text.splitlines() if line]


def _table(texts: list[str], tokens: list[int], vectors: Floats) -> Table:
    table = Table(title=f"vectors of {vectors.shape[1]} values, of length 1", title_justify="left")
    for name in ("text", "tokens", "cosine to the first"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for text, count, cosine in zip(texts, tokens, vectors @ vectors[0], strict=True):
        short = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
        table.add_row(shown(short), str(count), f"{cosine:.4f}")
    return table

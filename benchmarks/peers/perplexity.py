"""Perplexity of quantized models on several texts: bundles and llama.cpp's files of the same weights, window by window.

    python benchmarks/peers/perplexity.py WORK --tokenizer FOLDER --bundle float32=BUNDLE --bundle int4=BUNDLE
        --gguf Q4_K_M=FILE.gguf --text WikiText=FILE.txt --text books=FILE.txt:500000:1500000 --llama PYTHON [--json]

Models are compared with the first one. FOLDER has the tokenizer.json that all of them share; PYTHON is an interpreter
with llama-cpp-python. Of a text 60 000 characters are read, or those that are given: from which one on, and how many.
They are cut into windows of 512 tokens, and `--windows` of these, spread evenly, are each read by itself.

What was measured is kept in WORK: after a break the same command goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from worker import Worker

from recycle_onnx.cli.options import pairs
from recycle_onnx.tokenizer import load_tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from kept_lines import Line, kept_by_name  # noqa: E402

WINDOW, CHARACTERS = 512, 60_000
Row = dict[str, float]
"""A model's perplexity by text."""


@dataclass(frozen=True)
class Model:
    """Its worker's command, and the files that hold its weights."""

    command: tuple[object, ...]
    files: tuple[Path, ...]

    @property
    def megabytes(self) -> float:
        """Of graphs and weights."""
        return sum(file.stat().st_size for file in self.files) / 1e6


def models(bundles: dict[str, str], ggufs: dict[str, str], llama: str, threads: int) -> dict[str, Model]:
    """All models by name, bundles first. A bundle's module is not counted."""
    by_name = {}
    for name, bundle in bundles.items():
        files = tuple(sorted(Path(bundle).glob("model.onnx*")))
        by_name[name] = Model((sys.executable, HERE / "ours.py", bundle, threads), files)
    for name, path in ggufs.items():
        by_name[f"llama.cpp {name}"] = Model((llama, HERE / "llama.py", path, threads), (Path(path),))
    return by_name


def windows(tokenizer: Path, text: str, wanted: int) -> list[list[int]]:
    """Token ids of `wanted` windows of `text`, which is FILE or FILE:START:CHARACTERS."""
    file, *place = text.split(":")
    start, count = (int(part) for part in place) if place else (0, CHARACTERS)
    content = Path(file).read_text(encoding="utf-8", errors="ignore")[start : start + count]
    ids = load_tokenizer(tokenizer).encode(content).ids
    every = [ids[begin : begin + WINDOW] for begin in range(0, len(ids) - WINDOW + 1, WINDOW)]
    if len(every) < wanted:
        sys.exit(f"{text}: {len(every)} windows of {WINDOW} tokens; expected {wanted}, or fewer --windows")
    return every[:: len(every) // wanted][:wanted]


def measured(path: Path, compared: dict[str, Model], texts: dict[str, list[list[int]]]) -> dict[str, Row]:
    """Perplexities by model and text; kept in `path`, so that nothing is measured twice."""
    rows = {}
    for name, model in compared.items():
        by_name = {f"{name} on {text}": pieces for text, pieces in texts.items()}
        kept = kept_by_name(path, by_name, partial(_perplexities, model, by_name))
        rows[name] = {text: float(line["perplexity"]) for text, line in zip(texts, kept.values(), strict=True)}
    return rows


def _perplexities(model: Model, pieces: dict[str, list[list[int]]], missing: list[str]) -> Iterator[Line]:
    worker = Worker(*model.command)
    for name in missing:
        click.echo(f"perplexity of {name}", err=True)
        yield {"perplexity": worker.perplexities(pieces[name])["nats"]}
    worker.close()


def table(rows: dict[str, Row], megabytes: dict[str, float]) -> str:
    """Markdown: each perplexity, and by what part it is above the first model's."""
    first = next(iter(rows.values()))
    lines = [f"| | MB | {' | '.join(first)} |", "|---" * (2 + len(first)) + "|"]
    for name, row in rows.items():
        cells = [
            f"{value:.3f}" if row is first else f"{value:.3f} ({value / first[text] - 1:+.1%})"
            for text, value in row.items()
        ]
        lines.append(f"| {name} | {megabytes[name]:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Asked:
    """The options of the command line, by their names."""

    tokenizer: Path
    bundles: tuple[str, ...]
    ggufs: tuple[str, ...]
    texts: tuple[str, ...]
    wanted: int
    llama: str
    threads: int


@click.command()
@click.argument("work", type=Path)
@click.option("--tokenizer", type=Path, required=True, help="Folder with the tokenizer.json of all models.")
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="NAME=BUNDLE", help="May be repeated.")
@click.option("--gguf", "ggufs", multiple=True, metavar="NAME=FILE.gguf", help="May be repeated.")
@click.option("--text", "texts", multiple=True, required=True, metavar="NAME=FILE[:START:CHARACTERS]")
@click.option("--windows", "wanted", default=20, show_default=True, help="Of each text.")
@click.option("--llama", default=sys.executable, help="Interpreter with llama-cpp-python.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(work: Path, as_json: bool, **options: Any) -> None:
    """Compare perplexities."""
    asked = Asked(**options)
    work.mkdir(parents=True, exist_ok=True)
    compared = models(
        pairs("bundle", asked.bundles, "int4=my-bundle"),
        pairs("gguf", asked.ggufs, "Q4_K_M=model.gguf"),
        asked.llama,
        asked.threads,
    )
    named = pairs("text", asked.texts, "books=books.txt")
    pieces = {name: windows(asked.tokenizer, text, asked.wanted) for name, text in named.items()}
    rows = measured(work / f"perplexity-{asked.wanted}.jsonl", compared, pieces)
    megabytes = {name: model.megabytes for name, model in compared.items()}
    if as_json:
        results = {name: {"megabytes": megabytes[name], "perplexity": row} for name, row in rows.items()}
        click.echo(json.dumps({"windows": asked.wanted, "tokens": WINDOW, "results": results}, indent=2))
    else:
        click.echo(table(rows, megabytes))


if __name__ == "__main__":
    main()

"""`recycle-onnx eval`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.bundle import MANIFEST
from recycle_onnx.cli.report import as_json, progress, stages
from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.files import write_bytes

if TYPE_CHECKING:
    from recycle_onnx.runtime.model import RecycleModel

Row = tuple[str, str]


@click.command("eval")
@click.argument("path", type=Path, metavar="CHECKPOINT_OR_BUNDLE")
@click.option("--perplexity", type=Path, help="Text: how well both halves predict it.")
@click.option("--acceptance", type=Path, help="Text: how often proposals are right where the model goes on from it.")
@click.option("--agreement", type=Path, help="Text: how far alternate departs from full, going on from it.")
@click.option("--limit", default=200, show_default=True, help="Most documents of each text.")
@click.option("--new-tokens", default=64, show_default=True, help="After each document's opening.")
@click.option("--chain", default=4, show_default=True, help="Longest chain to count acceptance in.")
@click.option("--temperature", default=1.0, show_default=True, help="Of sampled acceptance, counted beside greedy.")
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@click.option("--report", "markdown", type=Path, help="Also write the tables as Markdown.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def eval_(
    path: Path,
    perplexity: Path | None,
    acceptance: Path | None,
    agreement: Path | None,
    limit: int,
    new_tokens: int,
    chain: int,
    temperature: float,
    threads: int | None,
    markdown: Path | None,
    json_: bool,
) -> None:
    """Measure the quality of both halves. Texts hold documents, split by <|endoftext|>; .jsonl and .gz too.

    A checkpoint is exported in float32 to a temporary folder first.
    """
    asked = {"perplexity": perplexity, "acceptance": acceptance, "agreement": agreement}
    texts = _read(asked, limit)
    if new_tokens < 2 or not 1 <= chain <= 15:
        raise InputError(f"new-tokens is {new_tokens} and chain {chain}; expected at least 2, and 1 to 15")
    if markdown and not markdown.absolute().parent.is_dir():
        raise InputError(f"{markdown.parent}: no such folder; make it, or name another for the report")
    with _model(path, threads) as model:
        if "verify" not in model.strategies and (missing := [name for name in texts if name != "perplexity"]):
            raise InputError(f"{path}: has no recyclable module; --{missing[0]} is about one")
        found = _measure(model, texts, new_tokens, chain, temperature)
    if markdown:
        write_bytes(markdown, _markdown(path, found).encode())
    if json_:
        click.echo(as_json(found))
        return
    for title, rows in _tables(found):
        table = Table(title=title, show_header=False, title_justify="left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)


def _read(asked: dict[str, Path | None], limit: int) -> dict[str, list[str]]:
    if limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1")
    texts = {name: list(islice(read_documents([path]), limit)) for name, path in asked.items() if path}
    if not texts:
        raise InputError("nothing to measure; expected --perplexity, --acceptance or --agreement with a text file")
    return texts


@contextmanager
def _model(path: Path, threads: int | None) -> Iterator[RecycleModel]:
    import recycle_onnx

    if (path / MANIFEST).exists():
        yield recycle_onnx.load(path, threads=threads)
        return
    from recycle_onnx.export import export

    with tempfile.TemporaryDirectory() as work:
        with stages() as report:
            export(path, Path(work) / "bundle", report=report)
        yield recycle_onnx.load(Path(work) / "bundle", threads=threads)


def _measure(
    model: RecycleModel, texts: dict[str, list[str]], new_tokens: int, chain: int, temperature: float
) -> dict[str, Any]:
    from recycle_onnx.evaluation.acceptance import acceptance
    from recycle_onnx.evaluation.agreement import agreement
    from recycle_onnx.evaluation.perplexity import perplexity

    found: dict[str, Any] = {}
    with progress("evaluating") as update:
        if documents := texts.get("perplexity"):
            found["perplexity"] = asdict(perplexity(model, documents, update))
        if documents := texts.get("acceptance"):
            found["acceptance"] = [
                asdict(acceptance(model, documents, chain=chain, new_tokens=new_tokens, temperature=t, report=update))
                for t in sorted({0.0, temperature})
            ]
        if documents := texts.get("agreement"):
            found["agreement"] = asdict(agreement(model, documents, new_tokens=new_tokens, report=update))
    return found


def _tables(found: dict[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    if p := found.get("perplexity"):
        rows = [
            ("full model, perplexity a token", f"{p['perplexity']:.4f}"),
            ("full model, bits a byte", f"{p['bits_per_byte']:.4f}"),
        ]
        if p["module_perplexity"] is not None:
            rows += [
                ("module, perplexity of the token after next", f"{p['module_perplexity']:.4f}"),
                ("tokens that the module can name", f"{p['module_coverage']:.1%}"),
                ("both name the same best token", f"{p['acceptance']:.1%}"),
            ]
        yield f"Given text: {p['documents']} documents, {p['tokens']} tokens", rows
    for a in found.get("acceptance", []):
        kind = "greedy" if a["temperature"] == 0 else f"sampled at temperature {a['temperature']:g}"
        rows = [(f"accepted at place {place}", f"{rate:.1%}") for place, rate in enumerate(a["by_place"], start=1)]
        rows.append((f"tokens a full run, chains of {a['chain']}", f"{a['tokens_per_full_run']:.2f}"))
        yield f"The model's own text, {kind}: {a['proposals']} proposals", rows
    if g := found.get("agreement"):
        low, high = g["nats_lost_interval"]
        yield (
            f"alternate against full: {g['texts']} greedy texts of {g['new_tokens']} tokens",
            [
                ("texts that are identical", f"{g['identical']:.1%}"),
                ("identical tokens at the beginning, median", f"{g['tokens_until_difference']:g}"),
                ("nats a token lost under the base", f"{g['nats_lost']:.3f} ({low:.3f} to {high:.3f})"),
            ],
        )


def _markdown(path: Path, found: dict[str, Any]) -> str:
    parts = [f"# Evaluation of {path.resolve().name}\n"]
    for title, rows in _tables(found):
        parts.append(f"\n## {title}\n\n| | |\n|---|---|\n")
        parts += [f"| {name} | {value} |\n" for name, value in rows]
    return "".join(parts)

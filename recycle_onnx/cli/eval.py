"""`recycle-onnx eval`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.bundle import MANIFEST
from recycle_onnx.cli import options
from recycle_onnx.cli.report import as_json, progress, stages
from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from recycle_onnx.evaluation.acceptance import Acceptance
    from recycle_onnx.evaluation.report import Findings
    from recycle_onnx.evaluation.task_rows import Row
    from recycle_onnx.runtime.model import RecycleModel


@click.command("eval")
@click.argument("path", type=Path, metavar="CHECKPOINT_OR_BUNDLE")
@click.option("--perplexity", type=Path, help="Text: how well both halves predict it.")
@click.option("--acceptance", type=Path, help="Text: how often proposals are right in it, and where the model goes on.")
@click.option("--prompts", type=Path, help="Text or .jsonl, a prompt a line: how often proposals are right in answers.")
@click.option("--field", help="Where each line of JSON has its prompt.  [default: messages, turns or prompt]")
@click.option("--agreement", type=Path, help="Text: how far alternate departs from full, going on from it.")
@click.option("--tasks", help="Zero-shot accuracy: lambada,hellaswag,piqa,arc_easy,openbookqa,boolq, or some of them.")
@click.option("--data-folder", type=Path, help="Where the tasks' files are (piqa.jsonl, …).  [default: fetched]")
@click.option(
    "--limit", default=200, show_default=True, help="Most documents of each text, prompts, and rows of each task."
)
@click.option("--new-tokens", default=64, show_default=True, help="After each document's opening, and in each answer.")
@click.option("--chain", default=4, show_default=True, help="Longest chain to count acceptance in.")
@click.option("--temperature", default=1.0, show_default=True, help="Of sampled acceptance, counted beside greedy.")
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@options.placing
@click.option("--report", "report_", type=Path, help="Also write Markdown with plots: a folder, or FILE.md.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def eval_(
    path: Path,
    perplexity: Path | None,
    acceptance: Path | None,
    prompts: Path | None,
    field: str | None,
    agreement: Path | None,
    tasks: str | None,
    data_folder: Path | None,
    limit: int,
    new_tokens: int,
    chain: int,
    temperature: float,
    threads: int | None,
    report_: Path | None,
    json_: bool,
    **settings: Any,
) -> None:
    """Measure the quality of both halves. Texts hold documents, split by <|endoftext|>; .jsonl and .gz too.

    A checkpoint is exported in float32 to a temporary folder first.
    """
    from recycle_onnx.evaluation.report import Target, tables, write_report

    if limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1")
    if new_tokens < 2 or not 1 <= chain <= 15:
        raise InputError(f"new-tokens is {new_tokens} and chain {chain}; expected at least 2, and 1 to 15")
    texts = {"perplexity": perplexity, "acceptance": acceptance, "agreement": agreement}
    asked = Asked(
        texts={name: _documents(text, limit) for name, text in texts.items() if text},
        prompts=read_prompts(prompts, field)[:limit] if prompts else [],
        tasks=_tasks(tasks, data_folder, limit),
        limit=limit,
        new_tokens=new_tokens,
        chain=chain,
        temperature=temperature,
    )
    if not asked.kinds:
        raise InputError(
            "nothing to measure; expected --perplexity, --acceptance, --agreement with a text, --prompts or --tasks"
        )
    target = Target.of(report_, asked.kinds) if report_ else None
    with _model(path, threads, options.places(settings)) as model:
        about_modules = [
            name for name in (*asked.texts, *(["prompts"] if asked.prompts else [])) if name != "perplexity"
        ]
        if "verify" not in model.strategies and about_modules:
            raise InputError(f"{path}: has no recyclable module; --{about_modules[0]} is about one")
        findings = _measure(model, asked)
    if target:
        write_report(target, path.resolve().name, findings)
    if json_:
        click.echo(as_json(findings.to_json()))
        return
    for table in tables(findings).values():
        shown = Table(*table.columns, title=table.title, show_header=bool(table.columns), title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        Console().print(shown)
        if table.note:
            Console().print(table.note, highlight=False)


@dataclass(frozen=True)
class Asked:
    """The measurements to make: documents by kind, prompts, rows by task (None where they are to be fetched)."""

    texts: dict[str, list[str]]
    prompts: list[Prompt]
    tasks: dict[str, list[Row] | None]
    limit: int
    new_tokens: int
    chain: int
    temperature: float

    @property
    def kinds(self) -> list[str]:
        """The names of all measurements."""
        return [*self.texts, *(["answers"] if self.prompts else []), *(["tasks"] if self.tasks else [])]


def _documents(path: Path, limit: int) -> list[str]:
    return list(islice(read_documents([path]), limit))


def _tasks(names: str | None, folder: Path | None, limit: int) -> dict[str, list[Row] | None]:
    from recycle_onnx.evaluation.task_rows import read_task, task_names

    if names is None:
        if folder:
            raise InputError("--data-folder holds the data of tasks; expected --tasks with it")
        return {}
    rows = {name: read_task(name, folder, limit) if folder else None for name in task_names(names)}
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness has bars of its own; ours is enough
    import recycle_onnx.evaluation.harness  # noqa: F401  # says at once where it is not installed

    return rows


@contextmanager
def _model(path: Path, threads: int | None, places: dict[str, Any]) -> Iterator[RecycleModel]:
    import recycle_onnx

    if (path / MANIFEST).exists():
        yield recycle_onnx.load(path, threads=threads, **places)
        return
    from recycle_onnx.export import export

    with tempfile.TemporaryDirectory() as work:
        with stages() as report:
            export(path, Path(work) / "bundle", report=report)
        yield recycle_onnx.load(Path(work) / "bundle", threads=threads, **places)


def _measure(model: RecycleModel, asked: Asked) -> Findings:
    from recycle_onnx.evaluation.agreement import agreement
    from recycle_onnx.evaluation.perplexity import perplexity
    from recycle_onnx.evaluation.report import Findings
    from recycle_onnx.evaluation.tasks import tasks

    scored, continued = asked.texts.get("perplexity"), asked.texts.get("agreement")
    with progress("evaluating") as update:
        return Findings(
            perplexity=perplexity(model, scored, update) if scored else None,
            acceptance=_acceptance(model, asked, update) if asked.texts.get("acceptance") else [],
            answers=_answers(model, asked, update) if asked.prompts else [],
            agreement=agreement(model, continued, new_tokens=asked.new_tokens, report=update) if continued else None,
            tasks=tasks(model, asked.tasks, limit=asked.limit, report=update) if asked.tasks else [],
        )


def _acceptance(model: RecycleModel, asked: Asked, report: Callable[[int, int, str], None]) -> list[Acceptance]:
    """Measure acceptance in the model's own text and in the documents, greedy and sampled."""
    from recycle_onnx.evaluation.acceptance import acceptance, acceptance_on_text

    return [
        count(
            model,
            asked.texts["acceptance"],
            chain=asked.chain,
            new_tokens=asked.new_tokens,
            temperature=temperature,
            report=report,
        )
        for count in (acceptance, acceptance_on_text)
        for temperature in sorted({0.0, asked.temperature})
    ]


def _answers(model: RecycleModel, asked: Asked, report: Callable[[int, int, str], None]) -> list[Acceptance]:
    """Measure acceptance in answers, greedy and sampled, one token at a time and in chains."""
    from recycle_onnx.evaluation.acceptance import acceptance_in_answers

    ids = [prompt.ids(model.bundle.folder, model.tokenizer) for prompt in asked.prompts]
    return [
        acceptance_in_answers(
            model, ids, chain=chain, new_tokens=asked.new_tokens, temperature=temperature, report=report
        )
        for temperature in sorted({0.0, asked.temperature})
        for chain in sorted({1, asked.chain})
    ]

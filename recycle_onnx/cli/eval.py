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
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, progress, stages
from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from recycle_onnx.evaluation.acceptance import Acceptance
    from recycle_onnx.evaluation.report import Findings
    from recycle_onnx.evaluation.task_rows import Row
    from recycle_onnx.runtime.model import Model
    from recycle_onnx.runtime.ort.placing import Placing


@click.command("eval")
@click.argument("path", type=PATH, metavar="CHECKPOINT_OR_BUNDLE")
@click.option("--perplexity", type=PATH, help="Text: how well both halves predict it.")
@click.option("--acceptance", type=PATH, help="Text: how often proposals are right in it, and where the model goes on.")
@click.option("--prompts", type=PATH, help="Text or .jsonl, a prompt a line: how often proposals are right in answers.")
@click.option("--field", help="Where each line of JSON has its prompt.  [default: messages, turns or prompt]")
@click.option("--agreement", type=PATH, help="Text: how far alternate departs from full, going on from it.")
@click.option("--tasks", help="Zero-shot accuracy: lambada,hellaswag,piqa,arc_easy,openbookqa,boolq, or some of them.")
@click.option("--data-folder", type=PATH, help="Where the tasks' files are (piqa.jsonl, …).  [default: fetched]")
@click.option(
    "--limit", default=200, show_default=True, help="Most documents of each text, prompts, and rows of each task."
)
@click.option("--new-tokens", default=64, show_default=True, help="After each document's opening, and in each answer.")
@click.option("--chain", default=4, show_default=True, help="Longest chain to count acceptance in.")
@click.option("--temperature", default=1.0, show_default=True, help="Of sampled acceptance, counted beside greedy.")
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@options.placing
@click.option("--report", "report_", type=PATH, help="Also write Markdown with plots: a folder, or FILE.md.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def eval_(path: Path, threads: int | None, report_: Path | None, json_: bool, **settings: Any) -> None:
    """Measure the quality of both halves. Texts hold documents, split by <|endoftext|>; .jsonl and .gz too.

    A checkpoint is exported in float32 to a temporary folder first.
    """
    from recycle_onnx.evaluation.report import Target, write_report

    asked = options.chosen(EvalChoices, settings).asked()
    target = Target.of(report_, asked.kinds) if report_ else None
    with _model(path, threads, options.places(settings)) as model:
        if "verify" not in model.strategies and asked.about_modules:
            raise InputError(f"{path}: has no recyclable module; --{asked.about_modules[0]} is about one")
        findings = _measure(model, asked)
    if target:
        write_report(target, path.resolve().name, findings)
    if json_:
        click.echo(as_json(findings.to_json()))
    else:
        _show(findings)


def _show(findings: Findings) -> None:
    from recycle_onnx.evaluation.report import tables

    for table in tables(findings).values():
        shown = Table(*table.columns, title=table.title, show_header=bool(table.columns), title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        Console().print(shown)
        if table.note:
            Console().print(table.note, highlight=False)


@dataclass(frozen=True)
class EvalChoices:
    """The options that say what to measure, by their names."""

    perplexity: Path | None
    acceptance: Path | None
    prompts: Path | None
    field: str | None
    agreement: Path | None
    tasks: str | None
    data_folder: Path | None
    limit: int
    new_tokens: int
    chain: int
    temperature: float

    def asked(self) -> Asked:
        """Read the texts, prompts and rows to measure on.

        Raises:
            InputError: nothing to measure, a number out of range, or a file that cannot be read.
        """
        if self.limit < 1:
            raise InputError(f"limit is {self.limit}; expected at least 1")
        if self.new_tokens < 2 or not 1 <= self.chain <= 15:
            raise InputError(
                f"new-tokens is {self.new_tokens} and chain {self.chain}; expected at least 2, and 1 to 15"
            )
        texts = {"perplexity": self.perplexity, "acceptance": self.acceptance, "agreement": self.agreement}
        asked = Asked(
            texts={name: _documents(text, self.limit) for name, text in texts.items() if text},
            prompts=read_prompts(self.prompts, self.field)[: self.limit] if self.prompts else [],
            tasks=_tasks(self.tasks, self.data_folder, self.limit),
            limit=self.limit,
            new_tokens=self.new_tokens,
            chain=self.chain,
            temperature=self.temperature,
        )
        if not asked.kinds:
            raise InputError(
                "nothing to measure; expected --perplexity, --acceptance, --agreement with a text, --prompts or --tasks"
            )
        return asked


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

    @property
    def about_modules(self) -> list[str]:
        """The options that were used and make no sense without a module."""
        return [name for name in (*self.texts, *(["prompts"] if self.prompts else [])) if name != "perplexity"]


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
def _model(path: Path, threads: int | None, placing: Placing) -> Iterator[Model]:
    import recycle_onnx

    if (path / MANIFEST).exists():
        yield recycle_onnx.load(path, threads=threads, **placing)
        return
    from recycle_onnx.export import export

    with tempfile.TemporaryDirectory() as work:
        with stages() as report:
            export(path, Path(work) / "bundle", report=report)
        yield recycle_onnx.load(Path(work) / "bundle", threads=threads, **placing)


def _measure(model: Model, asked: Asked) -> Findings:
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


def _acceptance(model: Model, asked: Asked, report: Callable[[int, int, str], None]) -> list[Acceptance]:
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


def _answers(model: Model, asked: Asked, report: Callable[[int, int, str], None]) -> list[Acceptance]:
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

"""What was measured as tables, for the terminal, and as Markdown with plots beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.evaluation.acceptance import Acceptance, described
from recycle_onnx.evaluation.agreement import Agreement
from recycle_onnx.evaluation.estimate import Estimate
from recycle_onnx.evaluation.perplexity import Perplexity
from recycle_onnx.evaluation.tasks import TaskAccuracy
from recycle_onnx.files import write_bytes

PLOTTED = ("acceptance", "tasks")
"""Measurements that have a picture."""


@dataclass(frozen=True)
class Findings:
    """The results of an evaluation; what nobody asked for is None or empty.

    Acceptance is listed by kind of text and temperature.
    """

    perplexity: Perplexity | None = None
    acceptance: Sequence[Acceptance] = ()
    answers: Sequence[Acceptance] = ()
    agreement: Agreement | None = None
    tasks: Sequence[TaskAccuracy] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values of what was asked for, by kind."""
        return {kind: value for kind, value in asdict(self).items() if value}


@dataclass(frozen=True)
class Table:
    """A title, the columns' names (none where the first column names what the second holds), rows and a note."""

    title: str
    rows: Sequence[tuple[str, ...]]
    columns: tuple[str, ...] = ()
    note: str = ""


def tables(findings: Findings) -> dict[str, Table]:
    """Return a table for every kind of measurement, by its name."""
    made = {
        "perplexity": findings.perplexity and _perplexity(findings.perplexity),
        "acceptance": findings.acceptance and _acceptance(findings.acceptance),
        "answers": findings.answers and _answers(findings.answers),
        "agreement": findings.agreement and _agreement(findings.agreement),
        "tasks": findings.tasks and _tasks(findings.tasks),
    }
    return {kind: table for kind, table in made.items() if isinstance(table, Table)}


def _perplexity(measured: Perplexity) -> Table:
    rows = [
        ("full model, perplexity a token", f"{measured.perplexity:.4f}"),
        ("full model, bits a byte", f"{measured.bits_per_byte:.4f}"),
    ]
    if measured.module_perplexity is not None:
        rows += [
            ("module, perplexity of the token after next", f"{measured.module_perplexity:.4f}"),
            ("tokens that the module can name", f"{measured.module_coverage:.1%}"),
            ("both name the same best token", f"{measured.acceptance:.1%}"),
        ]
    return Table(f"Given text: {measured.documents} documents, {measured.tokens} tokens", rows)


def _acceptance(kinds: Sequence[Acceptance]) -> Table:
    return Table(
        f"Accepted by place in a chain of {kinds[0].chain}, those before being right",
        _by_place(kinds, described),
        ("in", "proposals", *_places(kinds), "tokens a full run"),
        "Own text is the model's, going on from the documents' openings. "
        "On given text, tokens a full run are what these rates would make.",
    )


def _answers(kinds: Sequence[Acceptance]) -> Table:
    return Table(
        "Accepted in answers to prompts by place in a chain, those before being right",
        _by_place(kinds, lambda measured: f"{described(measured)}, chain {measured.chain}"),
        ("in", "proposals", *_places(kinds), "tokens a full run"),
    )


def _places(kinds: Sequence[Acceptance]) -> list[str]:
    return [f"place {place + 1}" for place in range(max(len(measured.by_place) for measured in kinds))]


def _by_place(kinds: Sequence[Acceptance], name: Callable[[Acceptance], str]) -> list[tuple[str, ...]]:
    width = len(_places(kinds))
    return [
        (
            name(measured),
            str(measured.proposals),
            *[f"{rate:.1%}" for rate in measured.by_place],
            *[""] * (width - len(measured.by_place)),
            f"{measured.tokens_per_full_run:.2f}",
        )
        for measured in kinds
    ]


def _agreement(measured: Agreement) -> Table:
    low, high = measured.nats_lost_interval
    return Table(
        f"alternate against full: {measured.texts} greedy texts of {measured.new_tokens} tokens",
        [
            ("texts that are identical", f"{measured.identical:.1%}"),
            ("identical tokens at the beginning, median", f"{measured.tokens_until_difference:g}"),
            ("nats a token lost under the base", f"{measured.nats_lost:.3f} ({low:.3f} to {high:.3f})"),
        ],
    )


def _tasks(results: Sequence[TaskAccuracy]) -> Table:
    module = results[0].alternate is not None
    alternate = ("full first", "module first", "alternate", "difference") if module else ("",)
    columns = ("task", "rows", "chance", "full model", *alternate)
    note = "With 95 % intervals."
    if module:
        note += (
            " Alternate is the mean of both orders, by who says the first token; "
            "its difference from the full model is paired, row by row."
        )
    unnamed = max(result.unnamed or 0.0 for result in results)
    if unnamed > 0:
        note += (
            f" The draft vocabulary lacks up to {unnamed:.1%} of a task's tokens where the module's turn came: they "
            "count as the least likely token that it can name."
        )
    return Table("Zero-shot tasks: accuracy in %", [_task(result) for result in results], columns, note)


def _task(result: TaskAccuracy) -> tuple[str, ...]:
    verdict = "" if result.informative else "not informative"
    cells = (
        f"{result.task} {result.metric}", str(result.rows), f"{100 * result.chance:.1f}", _percent(result.full),
    )  # fmt: skip
    orders = result.full_first, result.module_first
    if result.alternate is None or result.difference is None:
        return (*cells, verdict)
    firsts = (f"{100 * order.mean:.1f}" for order in orders if order is not None)
    return (*cells, *firsts, _percent(result.alternate), verdict or _percent(result.difference, "+"))


def _percent(value: Estimate, sign: str = "") -> str:
    """Write a mean and half the width of its interval."""
    return f"{100 * value.mean:{sign}.1f} ± {100 * (value.high - value.low) / 2:.1f}"


@dataclass(frozen=True)
class Target:
    """A place for a report: its file, and the beginning of the names of the pictures beside it."""

    path: Path
    prefix: str

    @classmethod
    def of(cls, path: Path, kinds: Sequence[str]) -> Target:
        """Return `FILE.md` with pictures named after it, or `report.md` with pictures in a folder, perhaps a new one.

        Raises:
            InputError: there is no folder to write into.
            ModuleNotFoundError: one of `kinds` is to be plotted, and matplotlib is not installed.
        """
        if any(kind in PLOTTED for kind in kinds):
            import recycle_onnx.evaluation.plot  # noqa: F401
        path = path.absolute()
        is_file = path.suffix == ".md" and not path.is_dir()
        if path.exists() and not is_file and not path.is_dir():
            raise InputError(f"{path}: is a file; expected a folder for the report, or a name that ends in .md")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder; make it, or name another for the report")
        return cls(path, f"{path.stem}-") if is_file else cls(path / "report.md", "")


def write_report(target: Target, name: str, findings: Findings) -> None:
    """Write tables as Markdown, and acceptance and tasks as PNG beside it.

    Raises:
        RecycleError: the files cannot be written.
    """
    text = f"# Evaluation of {name}\n"
    try:
        target.path.parent.mkdir(exist_ok=True)
        for kind, table in tables(findings).items():
            text += _markdown(table)
            if kind in PLOTTED:
                text += f"\n![{table.title}]({_plot(target, kind, findings)})\n"
        write_bytes(target.path, text.encode())
    except OSError as error:
        raise RecycleError(f"{target.path.parent}: cannot write the report ({error.strerror or error})") from error


def _plot(target: Target, kind: str, findings: Findings) -> str:
    """Draw it, and tell the name of the picture."""
    from recycle_onnx.evaluation.plot import picture_of_acceptance, picture_of_tasks

    name = f"{target.prefix}{kind}.png"
    is_tasks = kind == "tasks"
    picture = picture_of_tasks(findings.tasks) if is_tasks else picture_of_acceptance(findings.acceptance)
    write_bytes(target.path.parent / name, picture)
    return name


def _markdown(table: Table) -> str:
    columns = table.columns or ("", "")
    lines = [columns, ("---",) * len(columns), *table.rows]
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"\n## {table.title}\n\n{body}" + (f"\n{table.note}\n" if table.note else "")

"""What was measured as tables, for the terminal, and as Markdown with plots beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.evaluation.acceptance import described
from recycle_onnx.files import write_bytes

Findings = Mapping[str, Any]
"""What was asked for: `perplexity`, `acceptance`, `answers`, `agreement`, `tasks`: values of their dataclasses."""
PLOTTED = ("acceptance", "tasks")


@dataclass(frozen=True)
class Table:
    """A title, the columns' names (none where the first column names what the second holds), rows and a note."""

    title: str
    rows: Sequence[tuple[str, ...]]
    columns: tuple[str, ...] = ()
    note: str = ""


def tables(found: Findings) -> dict[str, Table]:
    """A table for every kind of measurement in `found`."""
    makers: dict[str, Callable[[Any], Table]] = {
        "perplexity": _perplexity, "acceptance": _acceptance, "answers": _answers, "agreement": _agreement,
        "tasks": _tasks,
    }  # fmt: skip
    return {kind: make(found[kind]) for kind, make in makers.items() if found.get(kind)}


def _perplexity(found: Mapping[str, Any]) -> Table:
    rows = [
        ("full model, perplexity a token", f"{found['perplexity']:.4f}"),
        ("full model, bits a byte", f"{found['bits_per_byte']:.4f}"),
    ]
    if found["module_perplexity"] is not None:
        rows += [
            ("module, perplexity of the token after next", f"{found['module_perplexity']:.4f}"),
            ("tokens that the module can name", f"{found['module_coverage']:.1%}"),
            ("both name the same best token", f"{found['acceptance']:.1%}"),
        ]
    return Table(f"Given text: {found['documents']} documents, {found['tokens']} tokens", rows)


def _acceptance(kinds: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        f"Accepted by place in a chain of {kinds[0]['chain']}, those before being right",
        _by_place(kinds, described),
        ("in", "proposals", *_places(kinds), "tokens a full run"),
        "Own text is the model's, going on from the documents' openings. "
        "On given text, tokens a full run are what these rates would make.",
    )


def _answers(kinds: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "Accepted in answers to prompts by place in a chain, those before being right",
        _by_place(kinds, lambda found: f"{described(found)}, chain {found['chain']}"),
        ("in", "proposals", *_places(kinds), "tokens a full run"),
    )


def _places(kinds: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"place {place + 1}" for place in range(max(len(found["by_place"]) for found in kinds))]


def _by_place(kinds: Sequence[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str]) -> list[tuple[str, ...]]:
    width = len(_places(kinds))
    return [
        (
            name(found),
            str(found["proposals"]),
            *[f"{rate:.1%}" for rate in found["by_place"]],
            *[""] * (width - len(found["by_place"])),
            f"{found['tokens_per_full_run']:.2f}",
        )
        for found in kinds
    ]


def _agreement(found: Mapping[str, Any]) -> Table:
    low, high = found["nats_lost_interval"]
    return Table(
        f"alternate against full: {found['texts']} greedy texts of {found['new_tokens']} tokens",
        [
            ("texts that are identical", f"{found['identical']:.1%}"),
            ("identical tokens at the beginning, median", f"{found['tokens_until_difference']:g}"),
            ("nats a token lost under the base", f"{found['nats_lost']:.3f} ({low:.3f} to {high:.3f})"),
        ],
    )


def _tasks(results: Sequence[Mapping[str, Any]]) -> Table:
    module = results[0]["alternate"] is not None
    alternate = ("full first", "module first", "alternate", "difference") if module else ("",)
    columns = ("task", "rows", "chance", "full model", *alternate)
    note = "With 95 % intervals."
    if module:
        note += (
            " Alternate is the mean of both orders, by who says the first token; "
            "its difference from the full model is paired, row by row."
        )
    unnamed = max(found["unnamed"] or 0.0 for found in results)
    if unnamed > 0:
        note += (
            f" The draft vocabulary lacks up to {unnamed:.1%} of a task's tokens where the module's turn came: they "
            "count as the least likely token that it can name."
        )
    return Table("Zero-shot tasks: accuracy in %", [_task(found, module) for found in results], columns, note)


def _task(found: Mapping[str, Any], module: bool) -> tuple[str, ...]:
    name, verdict = f"{found['task']} {found['metric']}", "" if found["informative"] else "not informative"
    cells = [name, str(found["rows"]), f"{100 * found['chance']:.1f}", _percent(found["full"])]
    if not module:
        return (*cells, verdict)
    cells += [f"{100 * found[order][0]:.1f}" for order in ("full_first", "module_first")]
    return (*cells, _percent(found["alternate"]), verdict or _percent(found["difference"], "+"))


def _percent(value: Sequence[float], sign: str = "") -> str:
    """A mean and half the width of its interval."""
    mean, low, high = (100 * part for part in value)
    return f"{mean:{sign}.1f} ± {(high - low) / 2:.1f}"


@dataclass(frozen=True)
class Target:
    """Where a report goes: its file, and how its pictures beside it begin."""

    path: Path
    prefix: str

    @classmethod
    def of(cls, path: Path, kinds: Sequence[str]) -> Target:
        """`FILE.md` and pictures named after it, or `report.md` and pictures in a folder, which may be a new one.

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


def write_report(target: Target, name: str, found: Findings) -> None:
    """Write tables as Markdown, and acceptance and tasks as PNG beside it.

    Raises:
        RecycleError: the files cannot be written.
    """
    text = f"# Evaluation of {name}\n"
    try:
        target.path.parent.mkdir(exist_ok=True)
        for kind, table in tables(found).items():
            text += _markdown(table)
            if kind in PLOTTED:
                text += f"\n![{table.title}]({_plot(target, kind, found[kind])})\n"
        write_bytes(target.path, text.encode())
    except OSError as error:
        raise RecycleError(f"{target.path.parent}: cannot write the report ({error.strerror or error})") from error


def _plot(target: Target, kind: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Draw it, and tell the name of the picture."""
    from recycle_onnx.evaluation.plot import picture_of

    name = f"{target.prefix}{kind}.png"
    write_bytes(target.path.parent / name, picture_of(kind, results))
    return name


def _markdown(table: Table) -> str:
    columns = table.columns or ("", "")
    lines = [columns, ("---",) * len(columns), *table.rows]
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"\n## {table.title}\n\n{body}" + (f"\n{table.note}\n" if table.note else "")

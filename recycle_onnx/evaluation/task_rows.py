"""Zero-shot tasks as files of JSON lines, in the fields that lm-evaluation-harness's own tasks read.

A row is either the data set's own (as Hugging Face's `to_json` writes it), or a gathered one: a query, its choices
and the index of the right one, as evaluation suites keep them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.untrusted import parse_json

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Answers of a multiple choice, as datasets number them."""


@dataclass(frozen=True)
class TaskFile:
    """A task: its name in the harness, its file (a pattern), the fields of a row, and how to convert one.

    `own` fields are the data set's, `gathered` ones are converted; `choices` is how many a row has where that is fixed.
    """

    harness: str
    pattern: str
    own: tuple[str, ...]
    gathered: tuple[str, ...]
    convert: Callable[[Row], Row]
    choices: int | None = None


def _lambada(row: Row) -> Row:
    return {"text": f"{row['context']} {row['continuation']}"}


def _hellaswag(row: Row) -> Row:
    # ctx is the label, sentences, and the beginning of one more; the harness wants that one apart, to capitalise it
    label, _, context = row["ctx"].partition(": ")
    sentences, dot, beginning = context.rpartition(". ")
    parts = {"ctx_a": sentences + dot.strip(), "ctx_b": beginning}
    return {"activity_label": label, **parts, "endings": row["choices"], "label": str(row["gold"])}


def _piqa(row: Row) -> Row:
    goal = row["query"].removeprefix("Question: ").rstrip("\n")
    first, second = row["choices"]
    return {"goal": goal, "sol1": first, "sol2": second, "label": row["gold"]}


def _science(question: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        labels = list(LETTERS[: len(row["choices"])])
        choices = {"text": row["choices"], "label": labels}
        return {question: row["query"].removeprefix("Question: "), "choices": choices, "answerKey": labels[row["gold"]]}

    return convert


def _boolq(row: Row) -> Row:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {
        "passage": passage,
        "question": question.removesuffix("?"),
        "label": int(row["choices"][row["gold"]] == "yes"),
    }


_CHOICE = ("query", "choices", "gold")
"""Fields that several tasks' rows have once they are converted."""
TASKS = {
    "lambada": TaskFile("lambada/lambada_openai", "lambada*.jsonl", ("text",), ("context", "continuation"), _lambada),
    "hellaswag": TaskFile(
        "hellaswag/hellaswag", "hellaswag*.jsonl",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"), ("ctx", "choices", "gold"), _hellaswag,
    ),
    "piqa": TaskFile("piqa/piqa", "piqa*.jsonl", ("goal", "sol1", "sol2", "label"), _CHOICE, _piqa, 2),
    "arc_easy": TaskFile(
        "arc/arc_easy", "arc_easy*.jsonl", ("question", "choices", "answerKey"), _CHOICE, _science("question")
    ),
    "openbookqa": TaskFile(
        "openbookqa/openbookqa", "openbook*.jsonl",
        ("question_stem", "choices", "answerKey"), _CHOICE, _science("question_stem"),
    ),
    "boolq": TaskFile("super_glue/boolq", "boolq*.jsonl", ("passage", "question", "label"), _CHOICE, _boolq, 2),
}  # fmt: skip


def task_names(text: str) -> list[str]:
    """Return the names of tasks, separated by commas in `text`, each once.

    Raises:
        InputError: one is not known, or none is given.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or (unknown := [name for name in names if name not in TASKS]):
        odd = repr(unknown[0]) if names else "empty"
        raise InputError(f"task {odd} is not known; expected some of: {', '.join(TASKS)}")
    return names


def read_task(name: str, folder: Path, limit: int | None = None) -> list[Row]:
    """Read the first `limit` rows of a task's file in `folder`, as the harness wants them.

    Raises:
        InputError: no such file or several, unreadable, or a row without the fields.
    """
    task = TASKS[name]
    path = _find(name, folder)
    rows = [_row(task, path, number, value) for number, value in islice(_lines(path), limit)]
    if not rows:
        raise InputError(f"{path}: is empty; expected a row of {name} a line")
    return rows


def _find(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one with the tasks' files")
    paths = sorted(folder.glob(TASKS[name].pattern))
    if len(paths) == 1:
        return paths[0]
    what = f"several files ({', '.join(path.name for path in paths)})" if paths else "no file"
    raise InputError(f"{folder}: {what} for {name}; expected one that is called {TASKS[name].pattern}")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_json(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _row(task: TaskFile, path: Path, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        if _has(value, task.own):
            return {field: value[field] for field in task.own}
        if _has(value, task.gathered) and _is_sound(value, task):
            return task.convert(value)
    fields = ", ".join(value) if isinstance(value, dict) else type(value).__name__
    raise InputError(
        f"{path}, line {number}: not a row of this task (found: {fields}); expected {', '.join(task.gathered)}"
        f" with gold an index of choices, or the data set's own {', '.join(task.own)}"
    )


def _has(value: Row, fields: Iterable[str]) -> bool:
    return all(value.get(field) is not None for field in fields)


def _is_sound(value: Row, task: TaskFile) -> bool:
    """Tell whether texts are texts, and `gold` is the place of a choice."""
    if "choices" not in task.gathered:
        return all(isinstance(value[field], str) for field in task.gathered)
    question, choices, gold = (value[field] for field in task.gathered)
    return (
        isinstance(choices, list)
        and all(isinstance(text, str) for text in (question, *choices))
        and len(choices) in ([task.choices] if task.choices else range(2, len(LETTERS) + 1))
        and type(gold) is int
        and 0 <= gold < len(choices)
    )

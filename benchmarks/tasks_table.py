"""Zero-shot tasks on several bundles, in llama.cpp and in transformers, row by row: accuracies, paired differences.

    python benchmarks/tasks_table.py WORK --bundle float32=BUNDLE --bundle int8=BUNDLE --bundle int4=BUNDLE
        --data-folder DATA [--limit 500] [--jobs 2] [--gguf Q4_K_M=FILE.gguf --llama PYTHON]
        [--checkpoint FOLDER] [--reference-limit 50]

DATA holds the tasks' files as for `recycle-onnx eval --tasks`. The first bundle is what the others are compared with,
GGUF files in llama.cpp too (PYTHON is an interpreter with llama-cpp-python). `alternate` of each is compared with its
own full model, and transformers (on the CHECKPOINT that the bundles were exported from, and its first rows alone: torch
is slow on processors) with the first bundle. Each result is a JSON file in WORK, and is not measured again: after a
break, run the same command. The tables go to WORK/tasks.md.
Needs the extra `eval`, and for --checkpoint torch and transformers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from recycle_onnx.cli.options import pairs
from recycle_onnx.evaluation.alternating import DECODINGS
from recycle_onnx.evaluation.estimate import Estimate, estimate, paired
from recycle_onnx.evaluation.task_rows import TASKS, read_task, task_names
from recycle_onnx.evaluation.tasks import METRICS, accuracy
from recycle_onnx.files import write_json

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))

REFERENCE = "transformers"
SLOWEST_FIRST = ("hellaswag", "boolq", "piqa", "lambada", "arc_easy", "openbookqa")
FIELDS = ("doc_id", "target", "arguments", *METRICS)
Samples = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Job:
    """A task on a bundle, on a checkpoint in transformers, or on a GGUF file in an interpreter with `llama`.cpp.

    Such a file has the tokenizer of the bundle `tokenizer`.
    """

    name: str
    folder: Path
    task: str
    limit: int
    data: Path
    threads: int
    llama: str = ""
    tokenizer: Path = Path()

    def file(self, work: Path) -> Path:
        return work / f"{self.name}-{self.task}-{self.limit}.json"


def run(job: Job) -> tuple[Samples, float]:
    """Return samples by decoding, and seconds."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from recycle_onnx.evaluation.harness import evaluate, load_task

    started = time.perf_counter()
    task = load_task(job.task, read_task(job.task, job.data, job.limit))
    samples = {"full": evaluate(_reference(job), task, job.limit)} if job.name == REFERENCE else _ours(job, task)
    kept = {name: [_plain(row) for row in sorted(rows, key=_place)] for name, rows in samples.items()}
    return kept, time.perf_counter() - started


def _ours(job: Job, task: Any) -> Samples:
    import recycle_onnx
    from recycle_onnx.evaluation.harness import RecycleLM, evaluate

    model = recycle_onnx.load(job.tokenizer if job.llama else job.folder, threads=job.threads, fixed_threads=True)
    if job.llama:
        from peer_tasks import PeerLM
        from worker import Worker

        worker = Worker(job.llama, PEERS / "llama.py", job.folder, job.threads)
        return {"full": evaluate(PeerLM(model, worker), task, job.limit)}
    lm, samples = RecycleLM(model), {}
    for decoding in DECODINGS if "alternate" in model.strategies else DECODINGS[:1]:
        lm.decoding = decoding
        samples[decoding] = evaluate(lm, task, job.limit)
    return samples


def _reference(job: Job) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(job.threads)
    return HFLM(pretrained=str(job.folder), device="cpu", dtype="float32", batch_size=1)


def _place(row: dict[str, Any]) -> int:
    return int(row["doc_id"])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the tables need of a row; of the arguments only the choices."""
    kept = {name: row[name] for name in FIELDS if name in row}
    return {**kept, "arguments": [["", str(argument[1])] for argument in row["arguments"]]}


def right(samples: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """Row by row, 1 where it is right."""
    return [float(sample[metric]) for sample in samples]


def percent(value: Estimate, sign: str = "") -> str:
    """Write a mean and half the width of its interval."""
    return f"{100 * value.mean:{sign}.1f} ± {50 * (value.high - value.low):.1f}"


def mean(values: Sequence[Estimate]) -> Estimate:
    """Of independent tasks: their mean, and its interval."""
    middle = fmean(value.mean for value in values)
    half = sum(((value.high - value.low) / 2) ** 2 for value in values) ** 0.5 / len(values)
    return Estimate(middle, middle - half, middle + half)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def metrics_of(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Those of `METRICS` that the task has."""
    return [metric for metric in METRICS if metric in samples[0]]


def bundles_table(samples_of: dict[tuple[str, str], Samples], names: Sequence[str], tasks: Sequence[str]) -> str:
    """Accuracy of the first bundle, and what each of the others has more."""
    base, *others = names
    rows, means = [], [[] for _ in names]
    for task in tasks:
        samples = samples_of[base, task]["full"]
        for metric in metrics_of(samples):
            about, base_rows = accuracy(task, metric, {"full": samples}), right(samples, metric)
            values = [about.full, *(paired(base_rows, right(samples_of[n, task]["full"], metric)) for n in others)]
            note = "" if about.informative else ", not informative"
            head = [f"{task} {metric}{note}", str(about.rows), f"{100 * about.chance:.1f}"]
            rows.append([*head, percent(values[0]), *(percent(value, "+") for value in values[1:])])
            if metric == "acc":
                for column, value in zip(means, values, strict=True):
                    column.append(value)
    first, *rest = map(mean, means)
    rows.append(["mean of acc", "", "", percent(first), *(percent(value, "+") for value in rest)])
    return markdown(["task", "rows", "chance", base, *(f"{name} less {base}" for name in others)], rows)


def alternate_table(samples_of: dict[tuple[str, str], Samples], names: Sequence[str], tasks: Sequence[str]) -> str:
    """Write what `alternate` of each bundle has more than its own full model; the mean of both orders."""
    rows, means = [], [[] for _ in names]
    for task in tasks:
        for metric in metrics_of(samples_of[names[0], task]["full"]):
            values = []
            for name in names:
                orders = {decoding: right(rows_, metric) for decoding, rows_ in samples_of[name, task].items()}
                both = [fmean(pair) for pair in zip(orders["full_first"], orders["module_first"], strict=True)]
                values.append(paired(orders["full"], both))
            rows.append([f"{task} {metric}", *(percent(value, "+") for value in values)])
            if metric == "acc":
                for column, value in zip(means, values, strict=True):
                    column.append(value)
    rows.append(["mean of acc", *(percent(mean(column), "+") for column in means)])
    return markdown(["task", *(f"{name}: alternate less full" for name in names)], rows)


def reference_table(samples_of: dict[tuple[str, str], Samples], base: str, tasks: Sequence[str]) -> str:
    """Write the first bundle beside transformers, on the rows that both have."""
    rows = []
    for task in tasks:
        theirs = samples_of[REFERENCE, task]["full"]
        ours = samples_of[base, task]["full"][: len(theirs)]
        for metric in metrics_of(theirs):
            a, b = right(theirs, metric), right(ours, metric)
            same = sum(x == y for x, y in zip(a, b, strict=True))
            rows.append([f"{task} {metric}", percent(estimate(a)), percent(estimate(b)), f"{same} of {len(a)}"])
    return markdown(["task", "transformers, float32", base, "rows judged alike"], rows)


@dataclass(frozen=True)
class Asked:
    """The options of the command line, by their names."""

    bundles: tuple[str, ...]
    ggufs: tuple[str, ...]
    llama: str
    data: Path
    names: str
    limit: int
    jobs: int
    threads: int
    checkpoint: Path | None
    reference_limit: int


@click.command()
@click.argument("work", type=Path)
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="NAME=BUNDLE", help="May be repeated.")
@click.option("--gguf", "ggufs", multiple=True, metavar="NAME=FILE.gguf", help="In llama.cpp; may be repeated.")
@click.option("--llama", default=sys.executable, help="Interpreter with llama-cpp-python.")
@click.option("--data-folder", "data", type=Path, required=True, help="Where the tasks' files are.")
@click.option("--tasks", "names", default=",".join(TASKS), show_default=True)
@click.option("--limit", default=500, show_default=True, help="Most rows of a task.")
@click.option("--jobs", default=2, show_default=True, help="Processes at a time.")
@click.option("--threads", default=1, show_default=True, help="Threads of each.")
@click.option("--checkpoint", type=Path, help="Hugging Face folder, to compare with transformers.")
@click.option("--reference-limit", default=50, show_default=True, help="Most rows there.")
def main(work: Path, **options: Any) -> None:
    """Evaluate BUNDLES on zero-shot tasks."""
    asked = Asked(**options)
    work.mkdir(parents=True, exist_ok=True)
    folders = {name: Path(folder) for name, folder in pairs("bundle", asked.bundles, "int4=my-bundle").items()}
    if REFERENCE in folders:
        raise click.UsageError(f"a bundle may not be called {REFERENCE}")
    tasks = task_names(asked.names)
    order = sorted(tasks, key=SLOWEST_FIRST.index)
    todo = [
        Job(name, folder, task, asked.limit, asked.data, asked.threads)
        for name, folder in folders.items()
        for task in order
    ]
    if asked.checkpoint:
        todo += [
            Job(REFERENCE, asked.checkpoint, task, asked.reference_limit, asked.data, asked.threads) for task in order
        ]
    files = {f"llama.cpp {name}": Path(file) for name, file in pairs("gguf", asked.ggufs, "Q4_K_M=model.gguf").items()}
    first = next(iter(folders.values()))
    todo += [
        Job(name, file, task, asked.limit, asked.data, asked.threads, asked.llama, first)
        for name, file in files.items()
        for task in order
    ]
    missing = [job for job in todo if not job.file(work).exists()]
    with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
        running = {pool.submit(run, job): job for job in missing}
        for future in as_completed(running):
            job = running[future]
            samples, seconds = future.result()
            write_json(job.file(work), {"seconds": seconds, "samples": samples})
            click.echo(f"{job.name}, {job.task}: {job.limit} rows in {seconds:.0f} s", err=True)
    samples_of = {(job.name, job.task): json.loads(job.file(work).read_text())["samples"] for job in todo}
    parts = ["Accuracy in %, with 95 % intervals; differences are paired, row by row.\n"]
    parts.append(bundles_table(samples_of, [*folders, *files], tasks))
    with_module = [name for name in folders if "full_first" in samples_of[name, tasks[0]]]
    if with_module:
        parts.append(alternate_table(samples_of, with_module, tasks))
    if asked.checkpoint:
        parts.append(reference_table(samples_of, next(iter(folders)), tasks))
    (work / "tasks.md").write_text("\n".join(parts))
    click.echo("\n".join(parts))


if __name__ == "__main__":
    main()

"""Which module is best: one base, many modules, each attached, trained for the same steps, exported and measured.

    python benchmarks/modules.py quality BASE WORK --data TEXT --held-out TEXT [--steps 500] [--only NAME …]
    python benchmarks/modules.py speed WORK [--repeat 10]
    python benchmarks/modules.py table WORK

`quality` trains what WORK has not yet and adds a line a module to WORK/quality.jsonl; it may run in the background.
The log of each training and its curves stay in WORK too.
`speed` measures the bundles that it left, in turns, and wants a quiet machine. `table` prints Markdown.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
from kept_lines import kept_by_name, lines_of

import recycle_onnx
from recycle_onnx.bench.steps import StepTimer
from recycle_onnx.checkpoint import Checkpoint, DraftVocabulary, NewModule, attach
from recycle_onnx.documents import read_documents
from recycle_onnx.evaluation.acceptance import acceptance
from recycle_onnx.evaluation.agreement import agreement
from recycle_onnx.evaluation.perplexity import perplexity
from recycle_onnx.export import export

TEXTS, NEW_TOKENS, CHAIN = 100, 150, 4


@dataclass(frozen=True)
class Variant:
    """What differs from the reference: arguments of `attach`, and training options.

    `draft` keeps one token in so many, the most frequent ones of the data.
    """

    attach: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "reference: 1 layer, frozen, regenerated, depth 3": Variant(),
    "2 layers": Variant({"num_layers": 2}),
    "given text": Variant(training={"regenerate": False}),
    "depth 1": Variant(training={"depth": 1}),
    "tap before the final norm": Variant({"tap": ("final_pre",)}),
    "tap of an inner layer too": Variant({"tap": ("layer.3", "final_post")}),
    "hidden state first": Variant({"concat": ("hidden_state", "embedding")}),
    "chain from before the norm": Variant({"recycle": "pre_norm"}),
    "a quarter of the vocabulary": Variant({"draft": 4}),
    "half of the vocabulary": Variant({"draft": 2}),
    "an eighth of the vocabulary": Variant({"draft": 8}),
    "random initialisation": Variant({"init": "random"}),
    "given text, joint": Variant(training={"regenerate": False, "joint": True}),
    "4 layers": Variant({"num_layers": 4}),
    "6 layers": Variant({"num_layers": 6}),
}


def folder_of(work: Path, name: str) -> Path:
    """Where a variant's checkpoint lies; its bundle stands beside it."""
    return work / "".join(letter if letter.isalnum() else "-" for letter in name)


@click.group()
def main() -> None:
    """Compare modules on one base."""


@main.command()
@click.argument("base", type=Path)
@click.argument("work", type=Path)
@click.option("--data", type=Path, required=True)
@click.option("--held-out", type=Path, required=True)
@click.option("--steps", default=500, show_default=True, help="Of windows of 256 tokens.")
@click.option("--batch-size", default=16, show_default=True, help="Windows a step.")
@click.option("--lr", type=float)
@click.option("--only", multiple=True, help="Names of variants.  [default: all that the base allows]")
def quality(
    base: Path, work: Path, data: Path, held_out: Path, steps: int, batch_size: int, lr: float | None, only: list[str]
) -> None:
    """Train every variant that is not there yet, and measure what it is worth."""
    work.mkdir(parents=True, exist_ok=True)
    with Checkpoint.open(base, base_only=True) as checkpoint:
        deepest = checkpoint.base.num_layers
    length = {"steps": steps, "batch_size": batch_size, "learning_rate": lr}
    possible = {name: variant for name, variant in VARIANTS.items() if variant.attach.get("num_layers", 1) <= deepest}

    def measured(missing: list[str]) -> Iterator[dict[str, Any]]:
        for name in missing:
            click.echo(name, err=True)
            yield _train_and_measure(base, folder_of(work, name), VARIANTS[name], data, held_out, length)

    kept_by_name(work / "quality.jsonl", [name for name in possible if not only or name in only], measured)


def _train_and_measure(
    base: Path, folder: Path, variant: Variant, data: Path, held_out: Path, length: dict[str, Any]
) -> dict[str, Any]:
    from recycle_onnx.training.curves import write_curves
    from recycle_onnx.training.log import LOG
    from recycle_onnx.training.options import TrainingOptions
    from recycle_onnx.training.trainer import train

    attach(base, folder, NewModule(**_arguments(base, data, variant)), force=True)
    options = TrainingOptions(**{**length, "regenerate": True, **variant.training})
    trained = train(folder, [data], options)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.recycler_weights is not None
        parameters = checkpoint.recycler_weights.num_parameters() / checkpoint.base_weights.num_parameters()
    bundle = folder.with_suffix(".bundle")
    export(folder, bundle, force=True)
    write_curves(folder, folder.with_suffix(".png"))
    shutil.move(folder / LOG, folder.with_suffix(".jsonl"))
    shutil.rmtree(folder)
    model = recycle_onnx.load(bundle, threads=1)
    documents = list(islice(read_documents([held_out]), TEXTS))
    single = acceptance(model, documents, chain=1, new_tokens=NEW_TOKENS)
    chains = acceptance(model, documents, chain=CHAIN, new_tokens=NEW_TOKENS)
    sampled = acceptance(model, documents, chain=1, new_tokens=NEW_TOKENS, temperature=1.0)
    return {
        "parameters": parameters,
        "seconds": trained.seconds,
        "greedy": single.by_place[0],
        "sampled": sampled.by_place[0],
        "chains": chains.by_place,
        "tokens_per_full_run": chains.tokens_per_full_run,
        "perplexity": perplexity(model, documents).perplexity,
        "agreement": asdict(agreement(model, documents, new_tokens=NEW_TOKENS)),
    }


def _arguments(base: Path, data: Path, variant: Variant) -> dict[str, Any]:
    arguments = dict(variant.attach)
    if part := arguments.pop("draft", None):
        with Checkpoint.open(base, base_only=True) as checkpoint:
            arguments["draft_vocabulary"] = DraftVocabulary(checkpoint.base.vocab_size // part, data)
    return arguments


@main.command()
@click.argument("work", type=Path)
@click.option("--repeat", default=10, show_default=True)
@click.option("--threads", type=int)
def speed(work: Path, repeat: int, threads: int | None) -> None:
    """Measure `full`, `alternate` and `verify` of every bundle, all in turns; write WORK/speed.json."""
    names = [line["name"] for line in lines_of(work / "quality.jsonl")]
    models = {
        name: recycle_onnx.load(folder_of(work, name).with_suffix(".bundle"), threads=threads, fixed_threads=True)
        for name in names
    }
    speedups: dict[str, dict[str, list[float]]] = {name: {"alternate": [], "verify": []} for name in names}
    timers = {}
    for name, model in models.items():
        model.stop_ids = frozenset()
        timers[name] = StepTimer(model, _opening(model))
    for _ in range(repeat):
        for name, model in models.items():
            timers[name].round()
            speeds = {kind: _tokens_per_second(model, kind) for kind in ("full", "alternate", "verify")}
            for kind, values in speedups[name].items():
                values.append(speeds[kind] / speeds["full"])
    result = {}
    for name in names:
        step = timers[name].medians()
        ratios = {kind: statistics.median(values) for kind, values in speedups[name].items()}
        result[name] = {"recycle_step": step["recycle_1"] / step["full_1"], **ratios}
    (work / "speed.json").write_text(json.dumps(result, indent=2))


def _opening(model: Any) -> list[int]:
    ids: list[int] = model.encode("Once upon a time there was a little girl who liked to play with")
    return ids


def _tokens_per_second(model: Any, strategy: str) -> float:
    result = model.generate(_opening(model), strategy=strategy, max_new_tokens=128)
    speed: float = result.stats.tokens_per_second
    return speed


@main.command()
@click.argument("work", type=Path)
def table(work: Path) -> None:
    """Print what was found as Markdown."""
    click.echo("\n".join(_rows(work)))


def _rows(work: Path) -> Iterator[str]:
    path = work / "speed.json"
    speeds = json.loads(path.read_text()) if path.exists() else {}
    yield (
        "| module | parameters | accepted greedily | sampled | places 1 to 4 of chains | tokens a full run, chain 4 "
        "| nats lost by `alternate` | recycle step | `alternate` | `verify` |"
    )
    yield "|" + "---|" * 10
    for line in lines_of(work / "quality.jsonl"):
        step = speeds.get(line["name"], {})
        low, high = line["agreement"]["nats_lost_interval"]
        places = " ".join(f"{rate:.2f}" for rate in line["chains"])
        measured = (
            [f"{step['recycle_step']:.0%}", f"{step['alternate']:.2f}x", f"{step['verify']:.2f}x"] if step else []
        )
        cells = [
            line["name"], f"+{line['parameters']:.1%}", f"{line['greedy']:.3f}", f"{line['sampled']:.3f}", places,
            f"{line['tokens_per_full_run']:.2f}", f"{line['agreement']['nats_lost']:.3f} ({low:.3f} to {high:.3f})",
            *(measured or ["", "", ""]),
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

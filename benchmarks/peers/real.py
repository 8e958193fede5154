"""Decoding and perplexity of this project against its peers on one real model: the same weights, prompts and windows.

    python benchmarks/peers/real.py WORK --checkpoint FOLDER --gguf MODEL.gguf --bundle int8=BUNDLE --bundle int4=BUNDLE
        --prompts PROMPTS.jsonl --text TEXT.txt --llama PYTHON [--genai PYTHON] [--limit 40] [--new-tokens 128]

FOLDER is the Hugging Face folder that the bundles were exported from, and the GGUF file holds the same weights;
llama.cpp's other types are made from it through F16, genai's model by its own builder from FOLDER. PYTHON is an
environment's interpreter: with llama-cpp-python, or with onnxruntime-genai, torch, transformers and onnx_ir.

Every prompt is a round: each engine answers it once, greedily, and the order turns around from one to the next. Figures
are medians over prompts, ratios are paired, intervals are the median's 95 %. Rounds and perplexities are kept in WORK:
after a break the same command goes on. The table goes to WORK/real.md, everything to WORK/real.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
from worker import Worker

from recycle_onnx.bench.answers import SHORTEST
from recycle_onnx.bench.conditions import Conditions
from recycle_onnx.bench.run import median_interval
from recycle_onnx.cli.options import pairs
from recycle_onnx.files import write_json
from recycle_onnx.prompts import read_prompts
from recycle_onnx.runtime.config import read_defaults
from recycle_onnx.tokenizer import load_tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from kept_lines import Line, kept_by_name, kept_lines, lines_of  # noqa: E402

TYPES = ("q4_0", "q4_k_m", "q8_0")
LOOKUPS = (10, 2)
"""Tokens that llama-cpp-python's prompt lookup proposes: its default, and what its README advises for processors."""
STRATEGIES = ("full", "auto", "verify", "alternate", "lookup")
WINDOW, BYTES = 512, 60_000
AGAINST = "llama.cpp Q4_0,llama.cpp Q8_0,onnxruntime-genai int4"


@dataclass(frozen=True)
class Engine:
    """A way to decode: the model it runs, its worker's command, and what requests say besides the prompt."""

    model: str
    command: tuple[object, ...]
    files: tuple[Path, ...]
    request: dict[str, Any]

    @property
    def scored(self) -> str:
        """Under which key a worker gives what the engine's text costs: only `alternate` writes another one."""
        return "alternate_nats" if self.request.get("strategy") == "alternate" else "nats"


def engines(
    work: Path, gguf: Path, bundles: dict[str, str], llama: str, genai: str | None, threads: int
) -> dict[str, Engine]:
    """All engines by name; those of one model share a process."""
    by_name: dict[str, Engine] = {}
    for path in (*(work / f"{kind}.gguf" for kind in TYPES), gguf):
        model = f"llama.cpp {path.stem.rpartition('.')[2].upper()}"
        command = (llama, HERE / "llama.py", path, threads)
        for count in (0, *LOOKUPS):
            name = f"{model}, prompt lookup of {count}" if count else model
            by_name[name] = Engine(model, command, (path,), {"lookup": count} if count else {})
    if genai:
        folder = work / "genai"
        command = (genai, HERE / "genai.py", folder, threads)
        model = "onnxruntime-genai int4"
        by_name[model] = Engine(model, command, tuple(sorted(folder.glob("model.onnx*"))), {})
    for name, bundle in bundles.items():
        model = f"recycle-onnx {name}"
        command = (sys.executable, HERE / "ours.py", bundle, threads)
        files = tuple(sorted(Path(bundle).glob("*.onnx*")))
        for strategy in STRATEGIES:
            by_name[f"{model}, {strategy}"] = Engine(model, command, files, {"strategy": strategy})
    return by_name


def prepare(work: Path, checkpoint: Path, gguf: Path, llama: str, genai: str | None) -> None:
    """Make the peers' models that are not there yet."""
    subprocess.run([llama, HERE / "requantize.py", gguf, work, *TYPES], check=True, stderr=subprocess.DEVNULL)
    if genai and not (work / "genai" / "genai_config.json").exists():
        options = ["int4_block_size=32", "int4_accuracy_level=4"]
        builder = [genai, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", work / "genai"]
        subprocess.run(
            [*builder, "-p", "int4", "-e", "cpu", "--extra_options", *options], check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def perplexities(
    path: Path, all_engines: dict[str, Engine], workers: dict[str, Worker], windows: list[list[int]]
) -> dict[str, float]:
    """By engine, over all windows, each read by itself; kept in `path` by model."""

    def measure(missing: list[str]) -> Iterator[Line]:
        for model in missing:
            click.echo(f"perplexity of {model}", err=True)
            yield workers[model].perplexities(windows)

    known = kept_by_name(path, workers, measure)
    return {name: known[engine.model][engine.scored] for name, engine in all_engines.items()}


def rounds(
    path: Path, all_engines: dict[str, Engine], workers: dict[str, Worker], prompts: list[list[int]], request: Any
) -> list[dict[str, dict[str, float]]]:
    """Tokens and speed of every engine for each prompt; kept in `path`, a line a prompt."""
    if any(set(line) != set(all_engines) for line in lines_of(path)[:1]):
        sys.exit(f"{path}: holds rounds of other engines; remove it, or name another WORK")

    def answered(start: int) -> Iterator[Line]:
        for engine in all_engines.values():  # a first answer pages in weights and allocates
            workers[engine.model].ask(**{**request, "prompt": prompts[0], "new_tokens": SHORTEST, **engine.request})
        for index in range(start, len(prompts)):
            click.echo(f"prompt {index + 1} of {len(prompts)}", err=True)
            answers = {}
            for name in all_engines if index % 2 == 0 else reversed(all_engines):
                engine = all_engines[name]
                answer = workers[engine.model].ask(**request, prompt=prompts[index], **engine.request)
                answers[name] = {"tokens": len(answer["tokens"]), "tokens_per_second": answer["tokens_per_second"]}
            yield answers

    return kept_lines(path, len(prompts), answered)


def speeds(runs: list[dict[str, dict[str, float]]], names: list[str]) -> list[list[float]]:
    """Of each of `names` on the prompts that all of them answer at some length."""
    long = [run for run in runs if all(run[name]["tokens"] >= SHORTEST for name in names)]
    return [[run[name]["tokens_per_second"] for run in long] for name in names]


def result(
    name: str, engine: Engine, perplexity: float, runs: list[dict[str, dict[str, float]]], others: list[str]
) -> dict[str, Any]:
    """One line of the table as plain values."""
    [own] = speeds(runs, [name])
    against = {}
    for other in others:
        ratios = [a / b for a, b in zip(*speeds(runs, [name, other]), strict=True)]
        against[other] = {"ratio": statistics.median(ratios), "interval": median_interval(ratios)}
    return {
        "megabytes": sum(file.stat().st_size for file in engine.files) / 1e6,
        "perplexity": perplexity,
        "answers": len(own),
        "tokens_per_second": statistics.median(own),
        "interval": median_interval(own),
        "against": against,
    }


def table(results: dict[str, dict[str, Any]], others: list[str]) -> str:
    """Markdown."""
    lines = [f"| | MB | perplexity | tokens/s | {' | '.join(f'x {other}' for other in others)} |"]
    lines.append("|---" * (4 + len(others)) + "|")
    for name, figures in results.items():
        cells = [name, f"{figures['megabytes']:.0f}", _perplexity(figures["perplexity"])]
        cells.append(
            f"{figures['tokens_per_second']:.0f} ({figures['interval'][0]:.0f} to {figures['interval'][1]:.0f})"
        )
        for other in others:
            ratio, (low, high) = figures["against"][other].values()
            cells.append("1" if other == name else f"{ratio:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _perplexity(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.1e}"  # of an untrained module in `alternate`


@dataclass(frozen=True)
class Asked:
    """The options of the command line, by their names."""

    checkpoint: Path
    gguf: Path
    bundles: tuple[str, ...]
    prompts: Path
    field: str | None
    text: Path
    windows: int
    llama: str
    genai: str | None
    against: str
    limit: int
    new_tokens: int
    threads: int


@click.command()
@click.argument("work", type=Path)
@click.option("--checkpoint", type=Path, required=True, help="Hugging Face folder: tokenizer, and genai's source.")
@click.option("--gguf", type=Path, required=True, help="The same weights for llama.cpp.")
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="NAME=BUNDLE", help="May be repeated.")
@click.option("--prompts", type=Path, required=True, help="Text or .jsonl, a prompt a line.")
@click.option("--field", help="Where each line of JSON has its prompt.")
@click.option("--text", type=Path, required=True, help="For perplexity: windows of 512 tokens of its first 60 kB.")
@click.option("--windows", default=20, show_default=True)
@click.option("--llama", required=True, help="Interpreter with llama-cpp-python.")
@click.option("--genai", help="Interpreter with onnxruntime-genai.")
@click.option("--against", default=AGAINST, show_default=True, help="Engines to give ratios to, separated by commas.")
@click.option("--limit", default=40, show_default=True, help="Most prompts.")
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(work: Path, **options: Any) -> None:
    """Compare tokens a second and perplexity."""
    asked = Asked(**options)
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, asked.checkpoint, asked.gguf, asked.llama, asked.genai)
    tokenizer = load_tokenizer(asked.checkpoint)
    read = islice(read_prompts(asked.prompts, asked.field), asked.limit)
    prompts = [prompt.ids(asked.checkpoint, tokenizer) for prompt in read]
    ids = tokenizer.encode(asked.text.read_bytes()[:BYTES].decode(errors="ignore")).ids
    pieces = [ids[start : start + WINDOW] for start in range(0, asked.windows * WINDOW, WINDOW)]
    if len(pieces[-1]) < WINDOW:
        sys.exit(f"{asked.text}: {len(ids)} tokens; expected {asked.windows * WINDOW}, or fewer --windows")
    compared = engines(
        work, asked.gguf, pairs("bundle", asked.bundles, "int4=my-bundle"), asked.llama, asked.genai, asked.threads
    )
    workers = {engine.model: Worker(*engine.command) for engine in {e.model: e for e in compared.values()}.values()}
    measured = perplexities(work / f"perplexity-{asked.windows}.jsonl", compared, workers, pieces)
    stop = sorted(read_defaults(asked.checkpoint / "generation_config.json").stop_ids or ())
    request = {"new_tokens": asked.new_tokens, "stop": stop}
    key = f"rounds-{asked.prompts.stem}-{asked.new_tokens}-threads-{asked.threads}.jsonl"
    runs = rounds(work / key, compared, workers, prompts, request)
    for worker in workers.values():
        worker.close()
    others = [name.strip() for name in asked.against.split(",") if name.strip() in compared]
    results = {name: result(name, engine, measured[name], runs, others) for name, engine in compared.items()}
    about = {
        "prompts": asked.prompts.name,
        "new_tokens": asked.new_tokens,
        "threads": asked.threads,
        "windows": asked.windows,
    }
    write_json(work / "real.json", {"machine": asdict(Conditions.here()), **about, "results": results})
    (work / "real.md").write_text(table(results, others))
    click.echo(table(results, others))


if __name__ == "__main__":
    main()

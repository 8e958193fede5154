"""Decoding of this project against its peers: same shape, same random weights, runs in turns (real.py: a real model).

    python benchmarks/peers/run.py WORK --genai PYTHON --llama PYTHON [--shape tinyllama-1.1b] [--context 128]
        [--new-tokens 64] [--threads 2] [--repeat 10] [--json]

WORK keeps the models. PYTHON is the interpreter of an environment with the peer: onnxruntime-genai with torch,
transformers and onnx_ir (for its model builder), or llama-cpp-python with gguf and safetensors. Workers load once and
wait for their turn; figures are medians, ratios are paired, intervals are the median's 95 %.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
from worker import Worker

from recycle_onnx.bench.conditions import Conditions
from recycle_onnx.bench.run import median_interval
from recycle_onnx.bench.shapes import shape as shape_of
from recycle_onnx.bench.shapes import write_random_base
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.export import DraftVocabulary, ExportOptions, Quantization, QuantizeOptions, export, quantize_bundle

HERE = Path(__file__).parent
DEFAULT = "block 32, output 8 bits (the default)"
RECIPES = {
    "block 32": Quantization(block_size=32, method="rtn", keep=("projection",)),
    "block 64": Quantization(block_size=64, method="rtn", keep=("projection",)),
    DEFAULT: Quantization(method="rtn"),
    "block 64, output 8 bits": Quantization(block_size=64, method="rtn"),
    "block 128": Quantization(block_size=128, method="rtn", keep=("projection",)),
    "block 128, output 8 bits": Quantization(block_size=128, method="rtn"),
}
"""genai's builder gives the output four bits; llama.cpp's Q4_0 more: here Q8_0."""

DRAFT_VOCABULARY = 8192
CHAINS, RATE = (1, 2, 3), 0.8
VERIFIED = ("block 32", DEFAULT, "block 128")
"""llama.cpp's speculation at its best: proposals that cost nothing."""

Engines = dict[str, tuple[Worker, dict[str, Any]]]
"""Ways to decode by name: a worker, and what its requests say besides the prompt."""


def bundle(work: Path, recipe: str) -> Path:
    """Where a recipe's bundle lies."""
    return work / re.sub(r"[^a-z0-9]+", "-", recipe)


def prepare(work: Path, shape: str, genai: str | None, llama: str | None) -> None:
    """Make the models that are not there yet, all from one folder of random weights."""
    base = work / "base"
    if not base.exists():
        write_random_base(base, shape_of(shape))
        attach(base, base, NewModule(num_layers=2))
    if not (work / "fp32").exists():
        (work / "text.txt").write_text("<0>")  # nothing to count: tokens are taken in their order
        export(
            base, work / "fp32", ExportOptions(draft_vocabulary=DraftVocabulary(DRAFT_VOCABULARY, work / "text.txt"))
        )
    for name, how in RECIPES.items():
        if not bundle(work, name).exists():
            quantize_bundle(work / "fp32", bundle(work, name), how, QuantizeOptions(compare=False))
    if genai and not (work / "genai").exists():
        options = ["int4_block_size=32", "int4_accuracy_level=4"]
        builder = [genai, "-m", "onnxruntime_genai.models.builder", "-i", base, "-o", work / "genai"]
        subprocess.run([*builder, "-p", "int4", "-e", "cpu", "--extra_options", *options], check=True)
    if llama and not (work / "q4_0.gguf").exists():
        subprocess.run([llama, HERE / "write_gguf.py", base, work / "q4_0.gguf"], check=True)


@dataclass(frozen=True)
class Asked:
    """The options of the command line, by their names."""

    genai: str | None
    llama: str | None
    shape: str
    context: int
    new_tokens: int
    threads: int
    repeat: int


def started(work: Path, asked: Asked) -> Engines:
    """Start a worker for every model; several engines may share one."""
    ours = {name: Worker(sys.executable, HERE / "ours.py", bundle(work, name), asked.threads) for name in RECIPES}
    engines: Engines = {f"recycle-onnx full, {name}": (worker, {"strategy": "full"}) for name, worker in ours.items()}
    for name, chain in product(VERIFIED, CHAINS):
        how = {"strategy": "verify", "chain": chain, "rate": RATE}
        engines[f"recycle-onnx verify, {name}, chain {chain}, {RATE:.0%} right"] = ours[name], how
    if asked.genai:
        worker = Worker(asked.genai, HERE / "genai.py", work / "genai", asked.threads)
        engines["onnxruntime-genai int4, block 32"] = worker, {}
    if asked.llama:
        worker = Worker(asked.llama, HERE / "llama.py", work / "q4_0.gguf", asked.threads)
        engines["llama.cpp Q4_0"] = worker, {}
        for chain in CHAINS:
            name = f"llama.cpp Q4_0, {chain} free proposals, {RATE:.0%} right"
            engines[name] = worker, {"chain": chain, "rate": RATE}
    return engines


@click.command()
@click.argument("work", type=Path)
@click.option("--genai", help="Interpreter with onnxruntime-genai.")
@click.option("--llama", help="Interpreter with llama-cpp-python.")
@click.option("--shape", default="tinyllama-1.1b", show_default=True)
@click.option("--context", default=128, show_default=True)
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeat", default=10, show_default=True)
@click.option("--json", "json_", is_flag=True)
def main(work: Path, json_: bool, **options: Any) -> None:
    """Compare `full`, and `verify` at a forced acceptance, with the peers."""
    asked = Asked(**options)
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, asked.shape, asked.genai, asked.llama)
    sizes = (asked.context, asked.new_tokens, asked.threads)
    prompt = [1 + index % 1000 for index in range(asked.context)]
    engines = started(work, asked)
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for index in range(asked.repeat):
        for name, (worker, how) in engines.items():
            seed = {"seed": index} if "chain" in how else {}
            answer = worker.ask(prompt=prompt, new_tokens=asked.new_tokens, **how, **seed)
            speeds[name].append(answer["tokens_per_second"])
    for worker in {id(worker): worker for worker, _ in engines.values()}.values():
        worker.close()
    results = {
        name: {
            "tokens_per_second": statistics.median(values),
            "interval": median_interval(values),
            "against": {other: _ratio(values, speeds[other]) for other in engines if "recycle" not in other},
        }
        for name, values in speeds.items()
    }
    conditions = Conditions.here()
    if json_:
        about = {"machine": vars(conditions), "shape": asked.shape, "sizes": sizes}
        click.echo(json.dumps({**about, "results": results}, indent=2))
        return
    for name, values in results.items():
        ratios = "".join(f", {ratio:.2f}x {other}" for other, (ratio, _) in values["against"].items() if other != name)
        click.echo(f"{name}: {values['tokens_per_second']:.1f} tokens/s{ratios}")


def _ratio(ours: list[float], theirs: list[float]) -> tuple[float, tuple[float, float]]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), median_interval(ratios)


if __name__ == "__main__":
    main()

"""What recycling gives where the text follows a JSON schema.

    python benchmarks/structured.py BUNDLE SCHEMA.json PROMPTS [--answer ANSWER.json] [--rounds 5] [--threads N]

PROMPTS is a text file, one prompt a line. With random weights, which would cut words into any tokens, `--answer` says
what the model is to say: its tokens are then by far the likeliest, to the full model. Prints medians of paired speeds
against `full`; under `--answer` those of `lookup` alone, since to the module the answer would be as likely.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import recycle_onnx
from recycle_onnx import JsonSchema
from recycle_onnx.prompts import read_prompts


def says(answer: list[int], prompt_tokens: int) -> Callable[[NDArray[np.int64], NDArray[np.float32]], object]:
    """Make a processor by which the next token of `answer` is the likeliest one, wherever it may stand."""

    def processor(ids: NDArray[np.int64], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        place = len(ids) - prompt_tokens
        if place < len(answer):
            logits[answer[place]] += 1000
        return logits

    return processor


@click.command()
@click.argument("bundle", type=Path)
@click.argument("schema", type=Path)
@click.argument("prompts", type=Path)
@click.option("--answer", type=Path, help="What the model is to say, JSON of this schema.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=int)
def main(bundle: Path, schema: Path, prompts: Path, answer: Path | None, rounds: int, threads: int | None) -> None:
    """Measure BUNDLE's strategies on answers that follow SCHEMA."""
    model = recycle_onnx.load(bundle, threads=threads, fixed_threads=True)
    constraint = JsonSchema(json.loads(schema.read_text(encoding="utf-8")))
    answer_ids = [] if answer is None else model.tokenizer.encode(answer.read_text(), add_special_tokens=False).ids
    names = ("full", "lookup") if answer else ("full", "lookup", "verify", "auto")
    speeds: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, float] = {}
    for prompt in read_prompts(prompts):
        ids = model.encode(prompt.text)
        processors = [says(answer_ids, len(ids))]
        expected = model.generate(ids, strategy="full", constraint=constraint, processors=processors).tokens
        for _ in range(rounds):
            for name in names:
                result = model.generate(ids, strategy=name, constraint=constraint, processors=processors)
                if model.bundle.manifest.precision == "fp32" and result.tokens != expected:
                    raise AssertionError(f"{name} says {result.text}")
                speeds[name].append(result.stats.tokens_per_second)
                tokens[name] = result.stats.new_tokens / result.stats.full_runs
    click.echo(f"the last answer: {model.tokenizer.decode(expected)} ({len(expected)} tokens)")
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(values, speeds["full"], strict=True))
        click.echo(
            f"{name}: {statistics.median(values):.0f} tokens/s, {ratio:.2f}x full; {tokens[name]:.2f} tokens a full run"
        )


if __name__ == "__main__":
    main()

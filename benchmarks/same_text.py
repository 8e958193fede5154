"""Whether every lossless strategy gives the tokens of `full`, on many natural prompts, greedy and seeded.

    python benchmarks/same_text.py WORK --bundle int8=BUNDLE --bundle int4=BUNDLE --prompts FILE.jsonl
        [--prompts ANOTHER.jsonl] [--limit 500] [--new-tokens 32] [--temperature 0.8] [--threads 1] [--json]

Compared are `verify` with chains of one to four, `lookup` and `auto`. Each prompt's outcome is a line in WORK, and is
not measured again: after a break, run the same command; a larger --limit goes on from a smaller one. Ends with exit
code 1 if a text differs, and names the prompts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click
from kept_lines import kept_lines
from prompt_options import PromptOptions, prompt_options

import recycle_onnx
from recycle_onnx.prompts import Prompt, read_prompts
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import Model

STRATEGIES: dict[str, dict[str, Any]] = {
    **{f"verify, chain {length}": {"strategy": "verify", "chain": length} for length in (1, 2, 3, 4)},
    "lookup": {"strategy": "lookup"},
    "auto": {"strategy": "auto"},
}
Outcome = dict[str, Any]
"""Of a prompt at a temperature: its `number`, the `tokens` of `full`, its `lossless` label, and in `differing` the
place of the first other token by strategy."""


def outcome(model: Model, number: int, ids: list[int], temperature: float, new_tokens: int) -> Outcome:
    """Answer a prompt by every strategy; its number is the seed."""
    common = {"max_new_tokens": new_tokens, "temperature": temperature, "seed": number}
    full = model.generate(ids, GREEDY, strategy="full", **common).tokens
    differing = {}
    for name, settings in STRATEGIES.items():
        result = model.generate(ids, GREEDY, **settings, **common)
        if result.tokens != full:
            pairs_alike = (a == b for a, b in zip(full, result.tokens, strict=False))
            differing[name] = next((place for place, alike in enumerate(pairs_alike) if not alike), len(full))
    return {"number": number, "tokens": len(full), "lossless": result.lossless, "differing": differing}


def outcomes(
    path: Path, bundle: Path, prompts: Sequence[Prompt], temperature: float, new_tokens: int, threads: int
) -> list[Outcome]:
    """Of all prompts; those that `path` has are not answered again."""

    def answered(first: int) -> Iterator[Outcome]:
        with recycle_onnx.load(bundle, threads=threads, fixed_threads=True) as model:
            for number, prompt in enumerate(prompts[first:], first):
                yield outcome(model, number, prompt.ids(bundle, model.tokenizer), temperature, new_tokens)

    return kept_lines(path, len(prompts), answered)


def summary(compared: Sequence[Outcome]) -> dict[str, Any]:
    """How many texts there are, their tokens, labels, and the numbers of prompts whose texts differ, by strategy."""
    return {
        "texts": len(compared),
        "tokens": sum(each["tokens"] for each in compared),
        "lossless": sorted({each["lossless"] for each in compared}),
        "differing": {name: [each["number"] for each in compared if name in each["differing"]] for name in STRATEGIES},
    }


@click.command()
@prompt_options(limit=500, new_tokens=32, threads=1)
@click.option("--json", "as_json", is_flag=True)
def main(work: Path, as_json: bool, **options: Any) -> None:
    """Compare the strategies' tokens, on the first --limit prompts of all files in order."""
    asked = PromptOptions(**options)
    work.mkdir(parents=True, exist_ok=True)
    prompts = list(chain.from_iterable(read_prompts(file, asked.field) for file in asked.files))[: asked.limit]
    stems = "+".join(file.stem for file in asked.files)
    results = {}
    for name, bundle in asked.folders.items():
        for heat in asked.temperatures:
            path = work / f"same-{stems}-{name}-{heat:g}-{asked.new_tokens}.jsonl"
            label = f"{name}, {f'seeded at {heat:g}' if heat else 'greedy'}"
            results[label] = summary(outcomes(path, bundle, prompts, heat, asked.new_tokens, asked.threads))
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        for label, result in results.items():
            wrong = {strategy: numbers for strategy, numbers in result["differing"].items() if numbers}
            click.echo(f"{label}: {result['texts']} texts, {result['tokens']} tokens, {'; '.join(result['lossless'])}")
            for strategy, numbers in wrong.items():
                click.echo(f"  {strategy} differs from full on prompts {', '.join(map(str, numbers))}")
    sys.exit(any(numbers for result in results.values() for numbers in result["differing"].values()))


if __name__ == "__main__":
    main()

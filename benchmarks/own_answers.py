"""A quantized model's own greedy answers: how often float32 agrees with their tokens, and whether they go in circles.

    python benchmarks/own_answers.py WORK --bundle float32=BUNDLE --bundle int4=BUNDLE --prompts FILE.jsonl
        [--limit 20] [--new-tokens 128] [--threads 1] [--json]

The first bundle is the reference: it reads every bundle's answers, and its likeliest token in each place is compared
with the token that stands there. It answers too, to show where it goes in circles itself. An answer does so where it
ends in a piece of at most `LONGEST` tokens that stands there `TIMES` times in a row.

Each answer is a line in WORK, and is not made again: after a break, run the same command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from kept_lines import kept_lines

import recycle_onnx
from recycle_onnx.cli.options import pairs
from recycle_onnx.evaluation.scoring import score
from recycle_onnx.prompts import Prompt, read_prompts
from recycle_onnx.runtime.config import GREEDY

LONGEST, TIMES = 40, 3
Answer = dict[str, Any]
"""Its `tokens`, and in how many places the reference `agrees`."""


def in_circles(tokens: Sequence[int]) -> bool:
    """Whether a text ends in repetitions."""
    return any(
        len(tokens) >= TIMES * size and all(tokens[-i] == tokens[-i - size] for i in range(1, (TIMES - 1) * size + 1))
        for size in range(1, LONGEST + 1)
    )


def answers(
    path: Path, bundle: Path, reference: Path, prompts: Sequence[Prompt], new_tokens: int, threads: int
) -> list[Answer]:
    """Of all prompts; those that `path` has are not made again."""

    def answered(first: int) -> Iterator[Answer]:
        model, judge = (
            recycle_onnx.load(folder, threads=threads, fixed_threads=True) for folder in (bundle, reference)
        )
        for prompt in prompts[first:]:
            ids = prompt.ids(bundle, model.tokenizer)
            tokens = model.generate(ids, GREEDY, max_new_tokens=new_tokens).tokens
            best = score(judge, [*ids, *tokens], len(ids)).best
            yield {"tokens": tokens, "agrees": int((best == tokens).sum())}

    return kept_lines(path, len(prompts), answered)


@click.command()
@click.argument("work", type=Path)
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="NAME=BUNDLE", help="May be repeated.")
@click.option("--prompts", "file", required=True, type=Path)
@click.option("--field", help="Where each line of JSON has its prompt.")
@click.option("--limit", default=20, show_default=True, help="Most prompts.")
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    work: Path, bundles: tuple[str, ...], file: Path, field: str | None, limit: int, new_tokens: int, threads: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare answers with what the first bundle would say."""
    work.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(file, field)[:limit]
    folders = {name: Path(folder) for name, folder in pairs("bundle", bundles, "int4=my-bundle").items()}
    reference = next(iter(folders.values()))
    results = {}
    for name, folder in folders.items():
        path = work / f"own-{file.stem}-{name}-{new_tokens}.jsonl"
        made = answers(path, folder, reference, prompts, new_tokens, threads)
        count = sum(len(answer["tokens"]) for answer in made)
        results[name] = {
            "answers": len(made),
            "tokens": count,
            "agreement": sum(answer["agrees"] for answer in made) / count,
            "in_circles": [number for number, answer in enumerate(made) if in_circles(answer["tokens"])],
        }
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    click.echo(
        "| | answers | tokens | the reference agrees | prompts whose answers go in circles |\n|---|---|---|---|---|"
    )
    for name, row in results.items():
        numbers = ", ".join(map(str, row["in_circles"])) or "none"
        click.echo(f"| {name} | {row['answers']} | {row['tokens']} | {row['agreement']:.1%} | {numbers} |")


if __name__ == "__main__":
    main()

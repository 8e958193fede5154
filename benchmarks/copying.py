"""Texts that repeat: the model continues a prompt, then is asked for the same again with the first answer in sight.

    python benchmarks/copying.py BUNDLE PROMPTS [--new-tokens 90] [--rounds 3] [--threads N]

PROMPTS is a text file, one prompt a line. Prints medians of paired speeds against `full`.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import click

import recycle_onnx
from recycle_onnx.prompts import read_prompts

STRATEGIES = ("full", "lookup", "auto")


@click.command()
@click.argument("bundle", type=Path)
@click.argument("prompts", type=Path)
@click.option("--new-tokens", default=90, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int)
def main(bundle: Path, prompts: Path, new_tokens: int, rounds: int, threads: int | None) -> None:
    """Measure `lookup` and `auto` where the text repeats."""
    model = recycle_onnx.load(bundle, threads=threads, fixed_threads=True)
    model.stop_ids = frozenset()
    room = model.bundle.manifest.context_length - new_tokens
    speeds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    accepted: list[float] = []
    for prompt in read_prompts(prompts):
        ids = model.encode(prompt.text)
        answer = model.generate(ids, strategy="full", max_new_tokens=new_tokens).tokens
        text = [*ids, *answer, *ids]
        for _ in range(rounds if len(text) <= room else 0):
            for name in STRATEGIES:
                result = model.generate(text, strategy=name, max_new_tokens=new_tokens)
                speeds[name].append(result.stats.tokens_per_second)
                if name == "lookup":
                    accepted.append(result.stats.acceptance_rate or 0.0)
    click.echo(f"{len(accepted) // rounds} prompts, {statistics.median(accepted):.0%} of the lookups accepted")
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(values, speeds["full"], strict=True))
        click.echo(f"{name}: {statistics.median(values):.0f} tokens/s, {ratio:.2f}x full")


if __name__ == "__main__":
    main()

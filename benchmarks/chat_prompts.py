"""Answers to prompts on several bundles: acceptance by place in a chain, and every strategy's speed against `full`.

    python benchmarks/chat_prompts.py WORK --bundle float32=BUNDLE --bundle int4=BUNDLE --prompts FILE.jsonl
        [--prompts ANOTHER.jsonl] [--field turns] [--limit 40] [--new-tokens 128] [--threads 2] [--temperature 0.8]
        [--acceptance-only]

Each result is a JSON file in WORK, and is not measured again: after a break, run the same command. The tables are
printed, and written to WORK/chat_prompts.md. Lossless strategies on float32 have to give the answers of `full`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from prompt_options import PromptOptions, prompt_options

import recycle_onnx
from recycle_onnx.bench.answers import AnswerOptions, bench_answers
from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.acceptance import acceptance_in_answers
from recycle_onnx.files import write_json
from recycle_onnx.prompts import Prompt, read_prompts

CHAINS = (1, 4)
Rows = list[dict[str, Any]]
Report = Callable[[int, int, str], None]


def kept(path: Path, measure: Callable[[], Rows]) -> Rows:
    """Return what `path` holds, measured first if it is not there."""
    if not path.exists():
        click.echo(f"measuring {path.name}", err=True)
        write_json(path, measure())
    rows: Rows = json.loads(path.read_text())
    return rows


def acceptances(bundle: Path, prompts: Sequence[Prompt], heat: float, new_tokens: int, threads: int) -> Rows:
    """Measure acceptance in chains of one and of four."""
    with recycle_onnx.load(bundle, threads=threads, fixed_threads=True) as model:
        ids = [prompt.ids(bundle, model.tokenizer) for prompt in prompts]
        return [
            asdict(acceptance_in_answers(model, ids, chain=chain, new_tokens=new_tokens, temperature=heat))
            for chain in CHAINS
        ]


def speeds(bundle: Path, prompts: Sequence[Prompt], options: AnswerOptions) -> Rows:
    """Speeds of all strategies; refuses answers of lossless ones that are not those of `full`."""
    rows = [asdict(result) for result in bench_answers(bundle, prompts, options)]
    wrong = [row["strategy"] for row in rows if row["lossless"] == "exact" and row["identical"] < 1]
    if wrong:
        raise SystemExit(f"{bundle}: {', '.join(wrong)} gave other answers than full")
    return rows


def acceptance_line(name: str, rows: Rows) -> str:
    """Write a line of the first table."""
    one, four = rows
    places = " ".join(f"{rate:.2f}" for rate in four["by_place"])
    first = f"{one['by_place'][0]:.3f}" if one["by_place"] else ""
    return f"| {name} | {one['proposals']} | {first} | {places} | {four['tokens_per_full_run']:.2f} |"


def speed_line(name: str, rows: Rows) -> str:
    """Write a line of the second table."""
    by_name = {row["strategy"]: row for row in rows}
    full = by_name.pop("full")
    cells = [
        f"{row['measured_speedup']:.2f} ({row['speedup_interval'][0]:.2f} to {row['speedup_interval'][1]:.2f})"
        for row in by_name.values()
    ]
    return f"| {name} | {full['answers']} | {full['decode_tokens_per_second']:.0f} | {' | '.join(cells)} |"


@click.command()
@prompt_options(limit=40, new_tokens=128, threads=2)
@click.option("--acceptance-only", is_flag=True, help="Leave out speeds, which want an idle machine.")
def main(work: Path, acceptance_only: bool, **options: Any) -> None:
    """Measure BUNDLES on prompts, of each file the first --limit."""
    asked = PromptOptions(**options)
    work.mkdir(parents=True, exist_ok=True)
    accepted, fast = [], []
    strategies = ("full", "auto", "verify", "alternate", "lookup")
    for file in asked.files:
        prompts = read_prompts(file, asked.field)[: asked.limit]
        for name, bundle in asked.folders.items():
            for heat in asked.temperatures:
                key = f"{file.stem}-{name}-{heat:g}-{len(prompts)}x{asked.new_tokens}"
                label = f"{file.stem} | {name} | {f'sampled at {heat:g}' if heat else 'greedy'}"
                rows = kept(
                    work / f"acceptance-{key}.json",
                    lambda: acceptances(bundle, prompts, heat, asked.new_tokens, asked.threads),  # noqa: B023 -- called at once
                )
                accepted.append(acceptance_line(label, rows))
                if acceptance_only:
                    continue
                settings = AnswerOptions(strategies, asked.new_tokens, (asked.threads,), temperature=heat)
                try:
                    rows = kept(work / f"speed-{key}.json", lambda: speeds(bundle, prompts, settings))  # noqa: B023
                except InputError as error:  # a bundle that says next to nothing on these prompts
                    click.echo(f"{label}: {error}", err=True)
                else:
                    fast.append(speed_line(label, rows))
    names = " | ".join(f"`{name}`, x full" for name in strategies[1:])
    text = "\n".join(
        [
            "| prompts | bundle | | proposals | place 1, chain 1 | places of chains of 4 | tokens a full run |",
            "|---|---|---|---|---|---|---|",
            *accepted,
            "",
            f"| prompts | bundle | | answers | `full`, tokens/s | {names} |",
            "|---|---|---|---|---|---|---|---|---|",
            *fast,
        ]
    )
    (work / "chat_prompts.md").write_text(text + "\n")
    click.echo(text)


if __name__ == "__main__":
    main()

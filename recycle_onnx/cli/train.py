"""`recycle-onnx train`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from recycle_onnx.cli.report import as_json, progress


@click.command()
@click.argument("checkpoint", type=Path)
@click.option(
    "--data", "-d", type=Path, multiple=True, required=True, help="UTF-8 text or .jsonl, .gz too; repeatable."
)
@click.option("--field", default="text", show_default=True, help="Where the text is in JSON lines.")
@click.option("--held-out", type=Path, multiple=True, help="Text to measure on.  [default: the end of the data]")
@click.option("--regenerate", is_flag=True, help="Train on text that the base writes from the documents' beginnings.")
@click.option("--temperature", default=0.8, show_default=True, help="Of the text that the base writes.")
@click.option(
    "--freeze-base/--joint", default=True, show_default=True, help="Train the module alone, or the base with it."
)
@click.option("--depth", default=3, show_default=True, help="Longest chain of recycled tokens to train.")
@click.option("--steps", type=int, help="Budget: optimiser steps.")
@click.option("--tokens", type=int, help="Budget: tokens of text.")
@click.option("--minutes", type=float, help="Budget: wall time.  [default: until acceptance stops rising, 15 at most]")
@click.option("--batch-size", default=16, show_default=True, help="Windows of text a step.")
@click.option("--sequence-length", default=256, show_default=True, help="Tokens a window.")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 1e-3 * sqrt(256 / hidden size)]")
@click.option("--weight-decay", default=0.01, show_default=True)
@click.option("--recycle-weight", default=1.0, show_default=True, help="Weight of the recycle loss in joint training.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the text.")
@click.option("--save-minutes", default=5.0, show_default=True, help="Save this often while training.")
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted or killed.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def train(
    checkpoint: Path,
    data: tuple[Path, ...],
    field: str,
    held_out: tuple[Path, ...],
    regenerate: bool,
    temperature: float,
    freeze_base: bool,
    depth: int,
    steps: int | None,
    tokens: int | None,
    minutes: float | None,
    batch_size: int,
    sequence_length: int,
    lr: float | None,
    weight_decay: float,
    recycle_weight: float,
    seed: int,
    save_minutes: float,
    resume: bool,
    json_: bool,
) -> None:
    """Train the recyclable module of CHECKPOINT on text, in place.

    With a frozen base the module learns the base's own distribution (soft cross-entropy). Without a budget it trains
    until acceptance on held-out text stops rising, 15 minutes at the most. Ctrl-C ends the training and keeps what
    was learnt; --resume goes on from there. Every step is a line in CHECKPOINT/training.jsonl.
    """
    from recycle_onnx.training.options import Progress, TrainingOptions
    from recycle_onnx.training.trainer import train as run

    options = TrainingOptions(
        joint=not freeze_base,
        depth=depth,
        steps=steps,
        tokens=tokens,
        minutes=minutes,
        batch_size=batch_size,
        sequence_length=sequence_length,
        learning_rate=lr,
        weight_decay=weight_decay,
        recycle_weight=recycle_weight,
        seed=seed,
        save_minutes=save_minutes,
        field=field,
        regenerate=regenerate,
        temperature=temperature,
    )
    with progress("training") as update:

        def notice(text: str) -> None:
            click.echo(text, err=True)

        def report(now: Progress) -> None:
            note = (
                f"loss {now.next_token:.3f}, recycle {now.recycle:.3f}, "
                f"accepted {_rates(now.acceptance)}, {now.tokens_per_second:,.0f} tokens/s"
            )
            update(now.step, max(now.step, round(now.step / max(now.spent, 1e-9))), note)

        result = run(
            checkpoint, list(data), options, held_out=list(held_out), resume=resume, notice=notice, report=report
        )
    if json_:
        click.echo(as_json({"checkpoint": str(checkpoint), **asdict(result)}))
    else:
        why = {"budget": "", "plateau": ", acceptance stopped rising", "interrupted": ", interrupted"}[result.ended]
        click.echo(f"{checkpoint}: {result.steps} steps in {result.seconds:.0f} s{why}")
        click.echo(f"held-out next-token loss {result.held_out_next_token:.3f}, recycle {result.held_out_recycle:.3f}")
        click.echo(
            f"held-out acceptance by place in a chain: {_rates(result.held_out_acceptance)} (greedy, given text)"
        )
    if result.ended == "interrupted":
        sys.exit(130)


def _rates(rates: tuple[float, ...]) -> str:
    return ", ".join(f"{rate:.1%}" for rate in rates)

"""`recycle-onnx train`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recycle_onnx.cli.report import as_json, echo, is_main_process, progress

if TYPE_CHECKING:
    from recycle_onnx.training.options import Optimizer, Precision, Progress, TrainingOptions, TrainingResult


@click.command()
@click.argument("checkpoint", type=Path)
@click.option(
    "--data", "-d", type=Path, multiple=True,
    help="UTF-8 text or .jsonl, .gz too; repeatable.  [default: text that the base writes]",
)  # fmt: skip
@click.option("--field", default="text", show_default=True, help="Where the text is in JSON lines.")
@click.option("--held-out", type=Path, multiple=True, help="Text to measure on.  [default: the end of the data]")
@click.option(
    "--regenerate", is_flag=True,
    help="Train on text that the base writes from the documents' beginnings, or as answers to chats (`messages`).",
)  # fmt: skip
@click.option(
    "--own-tokens", type=int,
    help="Let the base write so many tokens from nothing.  [default: 1,000,000 without --data, else none]",
)  # fmt: skip
@click.option("--temperature", default=0.7, show_default=True, help="Of the text that the base writes.")
@click.option(
    "--freeze-base/--joint", default=True, show_default=True, help="Train the module alone, or the base with it."
)
@click.option("--depth", default=3, show_default=True, help="Longest chain of recycled tokens to train.")
@click.option("--steps", type=int, help="Budget: optimiser steps.")
@click.option("--tokens", type=int, help="Budget: tokens of text.")
@click.option("--minutes", type=float, help="Budget: wall time.  [default: until acceptance stops rising, 15 at most]")
@click.option("--batch-size", default=16, show_default=True, help="Windows of text a step, over all processes.")
@click.option(
    "--gradient-accumulation", default=1, show_default=True, help="Parts of a batch, one after the other: less memory."
)
@click.option("--sequence-length", default=256, show_default=True, help="Tokens a window.")
@click.option(
    "--lr", type=float,
    help="Peak learning rate.  [default: 3e-2 for muon, 1e-3 for adamw, times sqrt(256 / hidden size)]",
)  # fmt: skip
@click.option("--weight-decay", default=0.01, show_default=True)
@click.option("--clip", default=1.0, show_default=True, help="Largest norm of the gradient.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]),
    help="Of the matrix products; bf16 also holds a frozen base in it.  "
    "[default: bf16 where the device multiplies it and the base is frozen]",
)  # fmt: skip
@click.option(
    "--optimizer", type=click.Choice(["adamw", "muon"]),
    help="For the matrices that are trained.  [default: muon; adamw with --joint]",
)  # fmt: skip
@click.option(
    "--overlap", default=0.0, show_default=True, help="Weight of a loss on what a sampled proposal is refused."
)
@click.option(
    "--draft-vocab", type=int,
    help="Let the module know so many tokens only: the most frequent ones of the training text.  "
    "[default: as the checkpoint has it]",
)  # fmt: skip
@click.option(
    "--cache-gb", default=20.0, show_default=True,
    help="Disk for what a frozen base says of the text, so that it reads it once; 0 for none.",
)  # fmt: skip
@click.option("--recycle-weight", default=1.0, show_default=True, help="Weight of the recycle loss in joint training.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the text.")
@click.option("--save-minutes", default=5.0, show_default=True, help="Save this often while training.")
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted or killed.")
@click.option("--estimate", is_flag=True, help="Say what it would take in time, memory and disk, and end.")
@click.option("--plot", type=Path, help="Also draw the curves, for instance into curves.png; needs matplotlib.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def train(
    checkpoint: Path,
    data: tuple[Path, ...],
    field: str,
    held_out: tuple[Path, ...],
    regenerate: bool,
    own_tokens: int | None,
    temperature: float,
    freeze_base: bool,
    depth: int,
    steps: int | None,
    tokens: int | None,
    minutes: float | None,
    batch_size: int,
    gradient_accumulation: int,
    sequence_length: int,
    lr: float | None,
    weight_decay: float,
    clip: float,
    precision: Precision | None,
    optimizer: Optimizer | None,
    overlap: float,
    draft_vocab: int | None,
    cache_gb: float,
    recycle_weight: float,
    seed: int,
    save_minutes: float,
    resume: bool,
    estimate: bool,
    plot: Path | None,
    json_: bool,
) -> None:
    """Train the recyclable module of CHECKPOINT on text, in place.

    Without --data the base writes the text itself: a chat model both sides of conversations, another one text from
    nothing. With a frozen base the module learns the base's own distribution (soft cross-entropy); the base reads the
    text once, and what it says is kept in the user's cache. Without a budget training goes on until acceptance on
    held-out text stops rising, 15 minutes at the most. The best step is kept. Ctrl-C ends the training and keeps what
    was learnt; --resume goes on from there. Every step is a line in CHECKPOINT/training.jsonl. On several devices:
    `accelerate launch -m recycle_onnx train …`.
    """
    from recycle_onnx.training.options import TrainingOptions

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
        gradient_accumulation=gradient_accumulation,
        clip=clip,
        precision=precision,
        field=field,
        regenerate=regenerate,
        own_tokens=own_tokens,
        optimizer=optimizer,
        overlap=overlap,
        draft_vocab=draft_vocab,
        cache_gb=cache_gb,
        temperature=temperature,
    )
    texts = (list(data), options, list(held_out))
    if estimate:
        _estimate(checkpoint, *texts, json_)
        return
    if plot:
        from recycle_onnx.picture import check_plot
        from recycle_onnx.training.curves import write_curves

        check_plot(plot)
    result = _train(checkpoint, *texts, resume)
    if is_main_process():
        if plot:
            write_curves(checkpoint, plot)
        _say(checkpoint, result, "the base's own text" if regenerate or not data else "given text", json_)
    if result.ended == "interrupted":
        sys.exit(130)


def _train(
    checkpoint: Path, data: list[Path], options: TrainingOptions, held_out: list[Path], resume: bool
) -> TrainingResult:
    from recycle_onnx.training.trainer import train as run

    with ExitStack() as stack:
        update = None

        def report(now: Progress) -> None:
            nonlocal update
            update = update or stack.enter_context(progress("training"))  # after the bars of what comes before
            note = (
                f"loss {now.next_token:.3f}, recycle {now.recycle:.3f}, "
                f"accepted {_rates(now.acceptance)}, {now.tokens_per_second:,.0f} tokens/s"
            )
            update(now.step, max(now.step, round(now.step / max(now.spent, 1e-9))), note)

        return run(
            checkpoint, data, options, held_out=held_out, resume=resume, notice=_notice, stage=progress, report=report
        )


def _say(checkpoint: Path, result: TrainingResult, text: str, json_: bool) -> None:
    if json_:
        click.echo(as_json({"checkpoint": str(checkpoint), **asdict(result)}))
        return
    why = {"budget": "", "plateau": ", acceptance stopped rising", "interrupted": ", interrupted"}[result.ended]
    echo(f"{checkpoint}: {result.steps} steps in {result.seconds:.0f} s{why}")
    echo(f"held-out next-token loss {result.held_out_next_token:.3f}, recycle {result.held_out_recycle:.3f}")
    echo(f"held-out acceptance by place in a chain: {_rates(result.held_out_acceptance)} (greedy, {text})")


def _estimate(checkpoint: Path, data: list[Path], options: TrainingOptions, held_out: list[Path], json_: bool) -> None:
    from recycle_onnx.training.estimate import estimate

    found = estimate(checkpoint, data, options, held_out=held_out, notice=_notice)
    if not is_main_process():
        return
    if json_:
        click.echo(as_json({"checkpoint": str(checkpoint), **asdict(found)}))
        return
    memory, disk = found.memory, found.disk
    echo(f"{checkpoint}: {found.processes} process{'es' * (found.processes > 1)} on {found.device}")
    echo(f"text     {found.text_tokens:,} tokens to train on, {found.held_out_tokens:,} held out")
    if found.steps is not None and found.passes is not None:
        echo(f"budget   {found.tokens:,} tokens in {found.steps:,} steps, {found.passes:.2f} passes of the text")
    if found.seconds_a_step is None or found.hours is None:
        echo(f"time     not measured: a step does not fit into the {_bytes(found.free_memory)} that are free")
    else:
        echo(
            f"time     {found.hours:.2f} hours: the base writes for {found.writing_hours:.2f}, reads for "
            f"{found.reading_hours:.2f}; then {found.seconds_a_step:.2f} s a step, without measuring and saving"
        )
    speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in found.product_speeds.items())
    echo(f"numbers  {found.precision}; matrix products here, in billions of operations a second: {speeds}")
    peak = f"; measured peak {_bytes(memory.measured_peak)}" if memory.measured_peak else ""
    echo(
        f"memory   {_bytes(memory.total)} a process: model {_bytes(memory.model)}, gradients "
        f"{_bytes(memory.gradients)}, optimizer {_bytes(memory.optimizer)}, activations {_bytes(memory.activations)}, "
        f"logits {_bytes(memory.logits)}{peak}"
    )
    echo(
        f"disk     weights {_bytes(disk.weights)}, state to resume from {_bytes(disk.state)} (both twice while they "
        f"are replaced), log {_bytes(disk.log)}; in the cache token ids {_bytes(disk.token_cache)}, the base's states "
        f"{_bytes(disk.target_cache)}"
    )


def _notice(text: str) -> None:
    if is_main_process():
        echo(text, err=True)


def _bytes(count: int) -> str:
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if count >= s or s == 1)
    return f"{count / size:.{2 if size > 1e6 else 0}f} {unit}"


def _rates(rates: tuple[float, ...]) -> str:
    return ", ".join(f"{rate:.1%}" for rate in rates)

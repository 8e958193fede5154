"""`recycle-onnx train`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recycle_onnx.cli.declared import Command, option_of
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, echo, is_main_process, progress
from recycle_onnx.declaration import declared
from recycle_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from recycle_onnx.training.options import Progress, TrainingResult


def _training(command: Command) -> Command:
    """Add an option for each of `TrainingOptions`."""
    for name, about in reversed(declared(TrainingOptions).items()):
        command = option_of(name, about, unset=about.unset, default=about.default)(command)
    return command


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option(
    "--data", "-d", type=PATH, multiple=True,
    help="UTF-8 text or .jsonl, .gz too; repeatable.  [default: text that the base writes]",
)  # fmt: skip
@click.option("--held-out", type=PATH, multiple=True, help="Text to measure on.  [default: the end of the data]")
@_training
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted or killed.")
@click.option("--estimate", is_flag=True, help="Say what it would take in time, memory and disk, and end.")
@click.option("--plot", type=PATH, help="Also draw the curves, for instance into curves.png; needs matplotlib.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def train(
    checkpoint: Path,
    data: tuple[Path, ...],
    held_out: tuple[Path, ...],
    resume: bool,
    estimate: bool,
    plot: Path | None,
    json_: bool,
    **settings: Any,
) -> None:
    """Train the recyclable module of CHECKPOINT on text, in place.

    Without --data the base writes the text itself: a chat model both sides of conversations, another one text from
    nothing. With a frozen base the module learns the base's own distribution (soft cross-entropy); the base reads the
    text once, and what it says is kept in the user's cache. Without a budget training goes on until acceptance on
    held-out text stops rising, 15 minutes at the most. The best step is kept. Ctrl-C ends the training and keeps what
    was learnt; --resume goes on from there. Every step is a line in CHECKPOINT/training.jsonl. On several devices:
    `accelerate launch -m recycle_onnx train …`.
    """
    options = TrainingOptions(**settings)
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
        _say(checkpoint, result, "the base's own text" if options.regenerate or not data else "given text", json_)
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

    estimated = estimate(checkpoint, data, options, held_out=held_out, notice=_notice)
    if not is_main_process():
        return
    if json_:
        click.echo(as_json({"checkpoint": str(checkpoint), **asdict(estimated)}))
        return
    memory, disk = estimated.memory, estimated.disk
    echo(f"{checkpoint}: {estimated.processes} process{'es' * (estimated.processes > 1)} on {estimated.device}")
    echo(f"text     {estimated.text_tokens:,} tokens to train on, {estimated.held_out_tokens:,} held out")
    if estimated.steps is not None and estimated.passes is not None:
        passes = f"{estimated.passes:.2f} passes of the text"
        echo(f"budget   {estimated.tokens:,} tokens in {estimated.steps:,} steps, {passes}")
    if estimated.seconds_a_step is None or estimated.hours is None:
        echo(f"time     not measured: a step does not fit into the {_bytes(estimated.free_memory)} that are free")
    else:
        echo(
            f"time     {estimated.hours:.2f} hours: the base writes for {estimated.writing_hours:.2f}, reads for "
            f"{estimated.reading_hours:.2f}; then {estimated.seconds_a_step:.2f} s a step, without measuring and saving"
        )
    speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in estimated.product_speeds.items())
    echo(f"numbers  {estimated.precision}; matrix products here, in billions of operations a second: {speeds}")
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

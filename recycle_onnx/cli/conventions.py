"""`recycle-onnx conventions`."""

from __future__ import annotations

from pathlib import Path

import click

from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, echo, stages
from recycle_onnx.errors import InputError


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--tokens", type=int, help="Tokens that the base writes to measure on.  [default: 2000]")
@click.option("--threads", type=int, help="Threads.  [default: one a physical core]")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def conventions(checkpoint: Path, tokens: int | None, threads: int | None, json_: bool) -> None:
    """Measure whether the module of CHECKPOINT is read as it was trained.

    The base writes text, and the module proposes its tokens: as its config declares it, and with each doubtful
    convention flipped alone. What is better by more than noise is marked.
    """
    from recycle_onnx.checkpoint import Checkpoint
    from recycle_onnx.conventions import MeasuredModule, measure
    from recycle_onnx.files import temporary_sibling
    from recycle_onnx.runtime.ort.sessions import check_threads

    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens is {tokens}; expected at least 1")
    check_threads(threads)
    with Checkpoint.open(checkpoint) as opened:
        if opened.recycler is None or opened.recycler_weights is None:
            raise InputError(f"{checkpoint}: has no recyclable module; make one with `recycle-onnx attach` first")
        module = MeasuredModule(opened.recycler, opened.recycler_weights, opened.draft_ids)
        with temporary_sibling(Path.cwd() / checkpoint) as work, stages() as report:
            verdict = measure(opened, module, work, tokens=tokens, threads=threads, report=report)
    if json_:
        best = verdict.best
        click.echo(as_json({
            "checkpoint": str(checkpoint), **verdict.to_json(),
            "better": best and best.to_json(), "read_from": opened.recycler.read_from,
        }))  # fmt: skip
        return
    echo(f"{checkpoint}: {verdict.sentence()}")
    if verdict.hopeless:
        echo("  that is as good as nothing: the module is untrained, or for another base")
    for other in verdict.others:
        mark = "better: " if other.better else ""
        echo(
            f"  {mark}{other.reading.convention} as {other.reading.value}: {other.acceptance:.1%} against "
            f"{other.declared:.1%} ({other.deviations:+.1f} deviations)"
        )

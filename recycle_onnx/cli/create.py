"""`recycle-onnx create`."""

from __future__ import annotations

from pathlib import Path

import click

from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, echo, next_step

PRESETS = ("tiny", "small", "base-1.3b")
"""Repeated here, so that `--help` need not import the rooms below."""


@click.command()
@click.argument("out", type=PATH)
@click.option(
    "--preset", type=click.Choice(PRESETS), default="tiny", show_default=True, help="Shape of base and module."
)
@click.option("--tokenizer", type=PATH, required=True, help="A tokenizer.json, or a folder with one.")
@click.option("--layers", type=int, help="Decoder layers of the module.  [default: the preset's, 1, 2 and 6]")
@click.option("--seed", default=0, show_default=True, help="Seed of the weights.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def create(out: Path, preset: str, tokenizer: Path, layers: int | None, seed: int, force: bool, json_: bool) -> None:
    """Write OUT: a fresh Llama with random weights and a module, to be trained from scratch by `train --joint`."""
    from recycle_onnx import checkpoint

    config = checkpoint.create(out, preset, tokenizer, num_layers=layers, seed=seed, force=force)
    if json_:
        click.echo(as_json({"checkpoint": str(out), "recycler": config.to_json()}))
        return
    echo(
        f"{out}: an untrained base ({preset}) and a module of {config.num_layers} layer{'s' * (config.num_layers > 1)}"
    )
    next_step("train", out, "--joint", "--data", "TEXT.txt")

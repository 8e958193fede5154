"""`recycle-onnx attach`."""

from __future__ import annotations

from pathlib import Path

import click

from recycle_onnx.cli.report import as_json, progress
from recycle_onnx.cli.sources import FromSource, note, source_options


@click.command(cls=FromSource)
@click.argument("base")
@click.argument("out", type=Path)
@click.option("--layers", default=1, show_default=True, help="Decoder layers of the module.")
@click.option("--reference", is_flag=True, help="Do not copy the base: refer to it by path and digest.")
@click.option("--seed", default=0, show_default=True, help="Seed of the projection's noise.")
@source_options
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def attach(
    base: str, out: Path, layers: int, reference: bool, seed: int, revision: str | None, force: bool, json_: bool
) -> None:
    """Write OUT: the base BASE with an untrained recyclable module.

    BASE is a Hugging Face folder, a GGUF file, or a model on the hub (org/name). The module starts from the base's
    last layers. With OUT = BASE only `recycler/` is added to it.
    """
    from recycle_onnx import checkpoint
    from recycle_onnx.checkpoint.sources import attached_to

    with (
        progress("converting") as converted,
        attached_to(base, out, revision=revision, reference=reference, force=force, note=note, progress=converted) as (
            folder,
            target,
        ),
    ):
        config = checkpoint.attach(
            folder, target, num_layers=layers, reference=reference and folder != target, seed=seed, force=force
        )
    if json_:
        click.echo(as_json({"checkpoint": str(out), "recycler": config.to_json()}))
        return
    click.echo(f"{out}: a base and an untrained module of {config.num_layers} layer{'s' * (config.num_layers > 1)}")
    click.echo(f"next: recycle-onnx train {out} --data TEXT.txt")

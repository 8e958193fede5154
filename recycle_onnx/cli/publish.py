"""`recycle-onnx publish`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from recycle_onnx.cli.module_check import measure
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, echo
from recycle_onnx.cli.sources import note
from recycle_onnx.cli.untrained import note_if_untrained
from recycle_onnx.errors import InputError


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("out", type=PATH)
@click.option("--dtype", default="float16", show_default=True, help="float16, bfloat16, float32, or stored: as it is.")
@click.option("--licence", "--license", metavar="ID", help="Of the base, such as apache-2.0.  [default: what it says]")
@click.option("--base-model", metavar="ORG/NAME", help="The base's id on the hub.  [default: where it came from]")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Measure how often the module is right, for the card."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def publish(
    checkpoint: Path,
    out: Path,
    dtype: str,
    licence: str | None,
    base_model: str | None,
    check: bool,
    force: bool,
    json_: bool,
) -> None:
    """Write the module of CHECKPOINT into the folder OUT, without the base: to upload it, or to pass it on.

    OUT holds weights, conventions and a model card for the hub. `recycle-onnx attach BASE CHECKPOINT --module OUT`
    joins it with anybody's copy of the base, in whatever precision that is.
    """
    from recycle_onnx import checkpoint as checkpoints
    from recycle_onnx.checkpoint.sources.hub import is_hub_id
    from recycle_onnx.files import check_target

    if base_model is not None and not is_hub_id(base_model):
        raise InputError(f"--base-model is {base_model!r}; expected an id on the hub, such as org/name")
    if licence is not None and not licence.strip():
        raise InputError("--licence is empty; expected an id such as apache-2.0, or nothing where it is not known")
    check_target(out, force=force)
    described = checkpoint / "recycler" / "config.json"
    trained = described.exists() and checkpoints.RecyclerConfig.read(described).trained
    config = checkpoints.publish(
        checkpoint,
        out,
        dtype=dtype,
        licence=licence,
        base_model=base_model,
        acceptance=measure(checkpoint, out) if check and trained else None,
        force=force,
    )
    source = config.base.source if config.base else None
    known = licence or (source or {}).get("license")
    size = sum(path.stat().st_size for path in out.iterdir())
    if json_:
        click.echo(as_json({
            "module": str(out), "bytes": size, "licence": known, "module_trained": config.trained,
            "acceptance": config.acceptance, "recycler": config.to_json(),
        }))  # fmt: skip
    else:
        echo(f"{out}: a module of {config.size}, {size / 1e6:.1f} MB")
        echo(f"join it with its base: recycle-onnx attach BASE CHECKPOINT --module {shlex.quote(str(out))}")
    if known is None:
        note("the base's licence is not known; the card says so: name it with --licence")
    note_if_untrained(config.trained)

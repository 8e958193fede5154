"""`recycle-onnx attach`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import click

from recycle_onnx.cli.report import as_json, progress
from recycle_onnx.cli.sources import FromSource, note, source_options
from recycle_onnx.errors import InputError

ORDERS = ("embedding,hidden_state", "hidden_state,embedding")


@click.command(cls=FromSource)
@click.argument("base")
@click.argument("out", type=Path)
@click.option("--layers", default=1, show_default=True, help="Decoder layers of the module.")
@click.option(
    "--init", type=click.Choice(["base", "random"]), default="base", show_default=True,
    help="Start from the base's last layers, or from nothing.",
)  # fmt: skip
@click.option(
    "--tap", metavar="NAMES", default="final_post", show_default=True,
    help="Hidden states of the base to read, with commas: final_post (after the final norm), final_pre (before it), "
    "layer.N (the residual stream after N layers).",
)  # fmt: skip
@click.option(
    "--concat", type=click.Choice(ORDERS), default=ORDERS[0], show_default=True,
    help="Order of the module's inputs before its projection.",
)  # fmt: skip
@click.option(
    "--recycle", type=click.Choice(["post_norm", "pre_norm"]), default="post_norm", show_default=True,
    help="State that a chain goes on from: the module's own after or before its final norm.",
)  # fmt: skip
@click.option("--window", type=int, help="Positions that the module's layers look back.  [default: as the base's]")
@click.option("--qk-norm", is_flag=True, help="Normalise queries and keys in the module's layers.")
@click.option("--draft-vocab", type=int, help="Let the module know so many frequent tokens only; needs --draft-text.")
@click.option("--draft-text", type=Path, help="Text like that which the model will write, to count tokens in.")
@click.option("--reference", is_flag=True, help="Do not copy the base: refer to it by path and digest.")
@click.option("--seed", default=0, show_default=True, help="Seed of what is random.")
@source_options
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def attach(
    base: str,
    out: Path,
    layers: int,
    init: Literal["base", "random"],
    tap: str,
    concat: str,
    recycle: str,
    window: int | None,
    qk_norm: bool,
    draft_vocab: int | None,
    draft_text: Path | None,
    reference: bool,
    seed: int,
    revision: str | None,
    force: bool,
    json_: bool,
) -> None:
    """Write OUT: the base BASE with an untrained recyclable module.

    BASE is a Hugging Face folder, a GGUF file, or a model on the hub (org/name). With OUT = BASE only `recycler/` is
    added to it. What tap, concat, recycle and draft vocabulary are good for is in docs/training.md; the checkpoint
    states them, and training, export and runtime follow.
    """
    from recycle_onnx import checkpoint
    from recycle_onnx.checkpoint.sources import attached_to

    if seed < 0:
        raise InputError(f"--seed is {seed}; expected 0 or more")
    draft = checkpoint.DraftVocabulary.given(draft_vocab, draft_text)
    find = partial(attached_to, base, out, revision=revision, reference=reference, force=force, note=note)
    with progress("converting") as converted, find(progress=converted) as (folder, target):
        config = checkpoint.attach(
            folder,
            target,
            num_layers=layers,
            init=init,
            tap=tuple(name.strip() for name in tap.split(",")),
            concat=tuple(concat.split(",")),
            recycle=recycle,
            window=window,
            qk_norm=qk_norm,
            draft_vocabulary=draft,
            reference=reference and folder != target,
            seed=seed,
            force=force,
        )
    if json_:
        click.echo(as_json({"checkpoint": str(out), "recycler": config.to_json()}))
        return
    click.echo(f"{out}: a base and an untrained module of {config.num_layers} layer{'s' * (config.num_layers > 1)}")
    click.echo(f"next: recycle-onnx train {out} --data TEXT.txt")

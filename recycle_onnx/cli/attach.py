"""`recycle-onnx attach`: a module of the base's own, or one that somebody published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from recycle_onnx.cli.attach_head import HeadChoices, attach_and_say
from recycle_onnx.cli.module_check import compared, measure, warn_if_far_below
from recycle_onnx.cli.options import chosen
from recycle_onnx.cli.paths import PATH, SOURCE
from recycle_onnx.cli.place import Place
from recycle_onnx.cli.report import as_json, echo, next_step
from recycle_onnx.cli.sources import FromSource, note, source_options
from recycle_onnx.cli.untrained import note_if_untrained
from recycle_onnx.errors import InputError, RecycleError

if TYPE_CHECKING:
    from recycle_onnx.checkpoint import Joined, Module, NewModule

ORDERS = ("embedding,hidden_state", "hidden_state,embedding")
OF_A_PUBLISHED_ONE = ("module_revision", "check")
"""Options that make sense with `--module` or `--head` only."""
OF_A_HEAD = ("accept_measured",)
"""Options that make sense with `--head` alone."""
OTHER_WEIGHTS = (
    "the base's weights are not those that the module was trained on: stored, rounded or quantized otherwise, or tuned "
    "further; sizes and tokens are the same"
)


@dataclass(frozen=True)
class NewModuleChoices:
    """The options about a new module, by their names; a published one has decided them already."""

    layers: int
    init: Literal["base", "random"]
    tap: str
    concat: str
    recycle: str
    window: int | None
    qk_norm: bool
    draft_vocab: int | None
    draft_text: Path | None
    seed: int

    def module(self) -> NewModule:
        """Return the module to make.

        Raises:
            InputError: a seed below 0, or only a part of what a draft vocabulary needs.
        """
        from recycle_onnx.checkpoint import DraftVocabulary, NewModule

        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; expected 0 or more")
        return NewModule(
            num_layers=self.layers,
            init=self.init,
            tap=tuple(name.strip() for name in self.tap.split(",")),
            concat=tuple(self.concat.split(",")),
            recycle=self.recycle,
            window=self.window,
            qk_norm=self.qk_norm,
            draft_vocabulary=DraftVocabulary.given(self.draft_vocab, self.draft_text),
            seed=self.seed,
        )


@click.command(cls=FromSource)
@click.argument("base", type=SOURCE)
@click.argument("out", type=PATH)
@click.option(
    "--module", type=SOURCE, metavar="FOLDER", help="A trained module: what `publish` wrote, a checkpoint, or a hub id."
)
@click.option("--module-revision", metavar="NAME", help="Branch, tag or commit of a module or head on the hub.")
@click.option(
    "--head", type=SOURCE, metavar="FOLDER",
    help="Somebody's EAGLE or MTP head, also inside a checkpoint, to read as a module: a folder or a hub id.",
)  # fmt: skip
@click.option(
    "--check/--no-check", default=None,
    help="Measure how often the module is right on this base.  [default: where its weights are other ones, and a head]",
)  # fmt: skip
@click.option(
    "--accept-measured", is_flag=True, help="Read a head as it is right most often, not as its files declare it."
)
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
@click.option("--draft-text", type=PATH, help="Text like that which the model will write, to count tokens in.")
@click.option(
    "--reference",
    is_flag=True,
    help="Do not copy the base, or a GGUF file's weights: refer to them by path and digest.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of what is random.")
@source_options
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
@click.pass_context
def attach(
    context: click.Context,
    /,
    base: str,
    out: Path,
    module: str | None,
    module_revision: str | None,
    check: bool | None,
    json_: bool,
    **settings: Any,
) -> None:
    """Write OUT: the base BASE with a recyclable module, untrained, or the trained one in FOLDER.

    BASE is a Hugging Face folder, a GGUF file, or a model on the hub (org/name). With OUT = BASE only `recycler/` is
    added to it. What tap, concat, recycle and draft vocabulary are good for is in docs/training.md; the checkpoint
    states them, and training, export and runtime follow. A trained module fits any copy of its base (docs/modules.md).
    A head's conventions are measured: see docs/heads.md.
    """
    from recycle_onnx import checkpoint
    from recycle_onnx.checkpoint.heads import head_folder

    head: str | None = settings["head"]
    _refuse_misplaced(context, module, head)
    place = Place(base, out, settings["revision"], settings["reference"], settings["force"], settings["adapter"])
    if module is not None:
        _attach_published(checkpoint.Module.find(module, module_revision), module, place, check, json_)
        return
    if head is not None:
        attach_and_say(
            head_folder(head, module_revision),
            head,
            place,
            HeadChoices(check is not False, settings["accept_measured"], json_),
        )
        return
    new = chosen(NewModuleChoices, settings).module()
    with place.opened() as (folder, target):
        reference = place.reference and folder != target
        config = checkpoint.attach(folder, target, new, reference=reference, force=place.force)
    if json_:
        click.echo(as_json({"checkpoint": str(out), "recycler": config.to_json()}))
        return
    echo(f"{out}: a base and an untrained module of {config.num_layers} layer{'s' * (config.num_layers > 1)}")
    next_step("train", out)


def _refuse_misplaced(context: click.Context, module: str | None, head: str | None) -> None:
    """Refuse options that a published module or head has decided, or that are about one only."""

    def first_set(names: Sequence[str]) -> str | None:
        chosen_ones = (n for n in names if context.get_parameter_source(n) is not ParameterSource.DEFAULT)
        return next((f"--{name.replace('_', '-')}" for name in chosen_ones), None)

    if module is not None and head is not None:
        raise InputError("--module and --head both name the module; expected one of them")
    if head is None and (option := first_set(OF_A_HEAD)):
        raise InputError(f"{option} is about somebody's head; expected --head FOLDER with it")
    decided = module or head
    if decided is None and (option := first_set(OF_A_PUBLISHED_ONE)):
        raise InputError(f"{option} is about a trained module; expected --module FOLDER with it")
    if decided is not None and (option := first_set([field.name for field in fields(NewModuleChoices)])):
        raise InputError(f"{option} is about a new module, and {decided} has decided it; leave it out")


def _attach_published(module: Module, named: str, place: Place, check: bool | None, json_: bool) -> None:
    from recycle_onnx import checkpoint

    with place.opened([module.folder]) as (folder, target):
        reference = place.reference and folder != target
        joined = checkpoint.join(folder, target, module, name=place.base, reference=reference, force=place.force)
    if not joined.same_weights:
        note(OTHER_WEIGHTS)
    wanted = not joined.same_weights and joined.config.trained if check is None else check
    measured = _measured(place.out) if wanted else None
    if json_:
        click.echo(as_json({
            "checkpoint": str(place.out), "module": named, "module_trained": joined.config.trained,
            "same_weights": joined.same_weights, "acceptance": measured, "recycler": joined.config.to_json(),
        }))  # fmt: skip
    else:
        _say(named, joined, place.out, measured)
    if measured:
        warn_if_far_below(measured, joined.config, place.out)
    note_if_untrained(joined.config.trained)


def _measured(out: Path) -> dict[str, Any] | None:
    """Measure acceptance; None, and a note, where that fails: the checkpoint is there all the same."""
    try:
        return measure(out, out)
    except RecycleError as error:
        note(f"acceptance was not measured: {error}")
        return None
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(f"interrupted while acceptance was measured; {out} is complete") from interruption


def _say(named: str, joined: Joined, out: Path, measured: dict[str, Any] | None) -> None:
    config = joined.config
    echo(f"{out}: a base and the module of {named}, {config.size}")
    if measured:
        echo(compared(measured, config))
    next_step("export", out, "BUNDLE")

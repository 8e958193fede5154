"""`recycle-onnx attach --head`: somebody's head, measured before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recycle_onnx.cli.place import Place
from recycle_onnx.cli.report import as_json, echo, next_step, stages
from recycle_onnx.files import temporary_sibling

if TYPE_CHECKING:
    from recycle_onnx.checkpoint import Checkpoint, RecyclerConfig
    from recycle_onnx.checkpoint.heads import Head
    from recycle_onnx.conventions import ConventionVerdict

MOST_CHANGES = 3
"""Conventions that are taken one after another: what is wrong in more places is another format."""


@dataclass(frozen=True)
class HeadChoices:
    """Whether to measure a head's conventions, whether to take what measured best, and whether to print JSON."""

    check: bool
    accept_measured: bool
    json: bool


def attach_and_say(folder: Path, named: str, place: Place, choices: HeadChoices) -> None:
    """Write the checkpoint of a base with the head in `folder`, and say what was read and measured.

    `named` is what the user called it.

    Raises:
        InputError: no head, one for another base or that cannot be expressed, or conventions that measured worse.
    """
    from recycle_onnx.checkpoint import Checkpoint
    from recycle_onnx.checkpoint.heads import attach_head, read_head
    from recycle_onnx.files import check_target

    with place.opened([folder]) as (base_folder, target), Checkpoint.open(base_folder, base_only=True) as base:
        goal = target if target != base_folder else target / "recycler"
        check_target(goal, force=place.force, keep=[folder, *base.folders()] if goal == target else [folder])
        head, verdict = read_head(folder, base.base_weights), None
        if choices.check:
            head, verdict = _checked(base, head, named, place.out, accept=choices.accept_measured)
        reference = place.reference and base_folder != target
        config = attach_head(base, target, head, keep=folder, reference=reference, force=place.force)
    if choices.json:
        measured = verdict and verdict.to_json()
        described = {"checkpoint": str(place.out), "head": named, "format": head.format.name}
        click.echo(as_json({**described, "conventions": measured, "recycler": config.to_json()}))
        return
    echo(f"{place.out}: a base and the head of {named} (format {head.format.name}), {config.size}")
    if layers := (config.read_from or {}).get("layers"):
        echo(f"its files have {layers} such layers; the first one guesses for every place of a chain")
    for line in _said(config, verdict):
        echo(line)
    next_step("export", place.out, "BUNDLE")


def _checked(base: Checkpoint, head: Head, named: str, out: Path, *, accept: bool) -> tuple[Head, ConventionVerdict]:
    """Measure a head's conventions; return it as it is to be read, with what was measured in its config."""
    from recycle_onnx.conventions import MeasuredModule, measure, settled
    from recycle_onnx.conventions.verdict import conventions_of

    declared, rounds = conventions_of(head.config), list[dict[str, Any]]()
    while True:
        module = MeasuredModule(head.config, head.tensors, head.draft_ids)
        with temporary_sibling(Path.cwd() / out) as work, stages() as report:
            verdict = measure(base, module, work, report=report)
        rounds.append(verdict.to_json())
        taken = settled(verdict, named, accept=accept) if len(rounds) <= MOST_CHANGES else None
        if taken is None:
            break
        head = head.read_as(taken.config, verdict.extra_tensors())
    about = {**(head.config.read_from or {}), "declared": declared, "measured": rounds}
    config = replace(head.config, read_from={**about, "taken": conventions_of(head.config)})
    return replace(head, config=config), verdict


def _said(config: RecyclerConfig, verdict: ConventionVerdict | None) -> Sequence[str]:
    """Say what was measured."""
    if verdict is None:
        return ["its conventions were not measured: recycle-onnx conventions does that"]
    lines = [f"conventions: {verdict.sentence()}"]
    about = config.read_from or {}
    changed = [name for name, value in about.get("taken", {}).items() if value != about["declared"][name]]
    if changed:
        lines.append(f"taken as measured, against what its files declare: {', '.join(changed)}")
    if verdict.hopeless:
        lines.append("warning: that is as good as nothing; it may be a head for another base, or for a tuned copy")
    return lines

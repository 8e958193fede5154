"""Whether the scales of a calibrated bundle are tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recycle_onnx.errors import InputError

if TYPE_CHECKING:
    from recycle_onnx.tuning import Tuner

tune_option = click.option(
    "--tune/--no-tune",
    default=False,
    show_default=True,
    help="Of calibrated int4: tune the scales on text that the model writes. Needs torch, and many minutes.",
)


def tuner_of(tune: bool, *, calibrated: bool) -> Tuner | None:
    """Return what tunes the scales of a bundle that is to be `calibrated`; None without --tune.

    Raises:
        InputError: --tune without torch, or for a bundle that is not calibrated.
    """
    if not tune:
        return None
    if not calibrated:
        raise InputError("--tune goes with calibrated int4: leave it out, or ask for 4 bits and --method calibrated")
    try:
        from recycle_onnx.training.scales import tune as tuner
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tune needs {error.name}, which is not installed: pip install 'recycle-onnx[train]', or leave it out"
        ) from None
    return tuner

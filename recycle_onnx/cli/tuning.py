"""Whether the scales of a calibrated bundle are tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recycle_onnx.cli.report import echo
from recycle_onnx.errors import InputError

if TYPE_CHECKING:
    from recycle_onnx.tuning import Tuner

INSTALL = "needs torch, which is not installed: pip install 'recycle-onnx[train]'"

tune_option = click.option(
    "--tune/--no-tune",
    default=None,
    help="Of calibrated int4: tune the scales on text that the model writes, some minutes more.  [default: where torch "
    "is installed and the model is small enough]",
)


def tuner_of(tune: bool | None, *, calibrated: bool) -> Tuner | None:
    """What tunes the scales of a bundle that is to be `calibrated`; None without torch, which is said.

    Raises:
        InputError: --tune without torch, or for a bundle that is not calibrated.
    """
    if tune and not calibrated:
        raise InputError("--tune goes with calibrated int4: leave it out, or ask for 4 bits and --method calibrated")
    if tune is False or not calibrated:
        return None
    try:
        from recycle_onnx.training.scales import tune as tuner
    except ModuleNotFoundError:
        if tune:
            raise InputError(f"--tune {INSTALL}") from None
        echo(f"note: scales are not tuned, which {INSTALL}", err=True)
        return None
    return tuner

"""The choices of a quantization that `quantize` and `export` share, and their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from recycle_onnx.cli.declared import Command
from recycle_onnx.cli.paths import PATH
from recycle_onnx.errors import InputError
from recycle_onnx.extras import is_installed

if TYPE_CHECKING:
    from recycle_onnx.export import Calibration
    from recycle_onnx.export.flavours import Precision
    from recycle_onnx.tuning import Tuner

CALIBRATING = (
    click.option(
        "--bits-per-weight", type=float,
        help="Of calibrated int4: budget for the layers' matrices, scales included.  [default: 5.5]",
    ),
    click.option(
        "--calibration", "calibration_text", type=PATH, metavar="FILE",
        help="Of calibrated int4: text, or JSON lines with text or prompts.  [default: a mixture, and the model's own]",
    ),
    click.option(
        "--tune/--no-tune", default=None,
        help="Of calibrated int4: tune the scales on text that the model writes. Takes torch, and minutes.  "
        "[default: tune where torch is installed]",
    ),
)  # fmt: skip

KV = click.option(
    "--kv", type=click.Choice(["int8"]),
    help="Keys and values of the text in 8 bits: a quarter of the memory, and faster long texts. For CPUs, and the "
    "flavour ort.  [default: as activations]",
)  # fmt: skip


def calibrating(command: Command) -> Command:
    """Add the options of a calibration."""
    for option in reversed(CALIBRATING):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class QuantizationChoices:
    """The options that `quantize` and `export` share, by their names."""

    method: str
    bits_per_weight: float | None
    calibration_text: Path | None
    tune: bool | None
    activations: str
    text: Path | None
    threads: int | None
    force_quality: bool
    kv: Literal["int8"] | None

    def method_for(self, bits: int) -> str:
        """Return the method that was asked for, or the usual one; empty where the number of bits decides."""
        from recycle_onnx.export.block_quantizer import CALIBRATED

        return self.method or (CALIBRATED if bits == 4 else "")

    def calibration(self, how: Precision | None) -> Calibration:
        """Return what to calibrate `how` with; by default only models for which that takes minutes.

        Raises:
            InputError: --tune without torch, or for a bundle that is not calibrated.
        """
        from recycle_onnx.export import Calibration, Quantization
        from recycle_onnx.export.block_quantizer import CALIBRATED
        from recycle_onnx.export.calibrated.calibrate import BITS_PER_WEIGHT, LARGEST

        calibrated = isinstance(how, Quantization) and how.method == CALIBRATED
        tune = calibrated and is_installed("train") if self.tune is None else self.tune
        tuner = _tuner(calibrated=calibrated) if tune else None
        budget = BITS_PER_WEIGHT if self.bits_per_weight is None else self.bits_per_weight
        return Calibration(self.calibration_text, budget, LARGEST if self.as_usual else None, tuner)

    @property
    def as_usual(self) -> bool:
        """Whether neither a method was asked for nor anything of a calibration, so that both suit the model."""
        return not self.method and self.bits_per_weight is None and self.calibration_text is None


def _tuner(*, calibrated: bool) -> Tuner:
    """Return what tunes the scales of a bundle that is to be `calibrated`."""
    if not calibrated:
        raise InputError("--tune goes with calibrated int4: leave it out, or ask for 4 bits and --method calibrated")
    try:
        from recycle_onnx.training.scales import tune
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tune needs {error.name}, which is not installed: pip install 'recycle-onnx[train]', or leave it out"
        ) from None
    return tune

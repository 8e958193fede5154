"""Taps: which hidden states of the full model a module reads."""

from __future__ import annotations

from recycle_onnx.contract import FINAL_POST
from recycle_onnx.errors import InputError

FINAL_PRE = "final_pre"
"""The residual stream before the final norm."""
LAYER = "layer."
"""`layer.N` is the residual stream after N layers."""

FUSED = "fused"
"""The one hidden state that the full model's graph makes of several taps, where a module fuses them."""


def layer_of(tap: str) -> int:
    """Return N of `layer.N`; 0 for anything else."""
    number = tap.removeprefix(LAYER)
    return int(number) if number.isdecimal() and tap == f"{LAYER}{int(number)}" else 0


def check_taps(taps: tuple[str, ...], num_layers: int, where: str) -> None:
    """Refuse what a base of `num_layers` has not; `where` says who asks.

    Raises:
        InputError: no tap, one that is unknown or beyond the base's layers, or the same one twice.
    """
    inner = f", '{LAYER}1' to '{LAYER}{num_layers - 1}'" if num_layers > 1 else ""
    expected = f"{FINAL_POST!r}, {FINAL_PRE!r}{inner}"
    if not taps:
        raise InputError(f"{where}: names no tap; expected some of {expected}")
    for tap in taps:
        if tap not in (FINAL_POST, FINAL_PRE) and not 1 <= layer_of(tap) < num_layers:
            raise InputError(f"{where}: tap {tap!r} is not supported; this base has {expected}")
        if taps.count(tap) > 1:
            raise InputError(f"{where}: names tap {tap!r} twice")

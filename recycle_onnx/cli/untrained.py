"""What commands say of a module that was never trained."""

from __future__ import annotations

from recycle_onnx.cli.sources import note

UNTRAINED = (
    "the module is untrained: auto leaves it alone, verify and alternate gain nothing by it; train it (recycle-onnx "
    "train), or attach a trained one (recycle-onnx attach BASE OUT --module FOLDER)"
)
WITHOUT_MODULE = ("full", "lookup")
"""Strategies that never ask it."""


def note_if_untrained(trained: bool, strategy: str | None = None) -> None:
    """Warn in one line on standard error, unless the module was trained or `strategy` does not use one."""
    if not trained and strategy not in WITHOUT_MODULE:
        note(UNTRAINED)

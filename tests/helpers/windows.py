"""A small model of which most layers see a few rows only, and a runtime that drops rows after a few."""

from __future__ import annotations

from pathlib import Path

import pytest

from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.decoding import kv_cache, window_rows
from tests.helpers import tiny

WINDOW, SPARE, STEP, RUN, CONTEXT = 6, 16, 8, 16, 256
WINDOWS = (WINDOW, None, WINDOW)
MOST = WINDOW - 1 + SPARE + STEP - 1 + RUN
"""Rows that a buffer of a layer with a window needs at most."""


def write_checkpoint(folder: Path, context: int = CONTEXT) -> Path:
    """Three layers, the first and last with a window, and a module of one layer like the last."""
    tiny.write_base(folder, tiny.tiny_config(num_layers=len(WINDOWS), context_length=context))
    kinds = ["full_attention" if window is None else "sliding_attention" for window in WINDOWS]
    windows = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": kinds}
    config = {"model_type": "smollm3", "no_rope_layer_interval": 2, **windows}
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **config})
    attach(folder, folder, NewModule(num_layers=1))
    return folder


def drop_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep few rows beyond those that are seen, and drop a few at a time."""
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 16)
    monkeypatch.setattr(kv_cache, "INT8_STEP", STEP)
    monkeypatch.setattr(window_rows, "ROWS_BACK", SPARE)
    monkeypatch.setattr(window_rows, "RUN_ROWS", RUN)
    monkeypatch.setattr(window_rows, "step_of", lambda spec: STEP)

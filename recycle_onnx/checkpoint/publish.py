"""Take a module out of its checkpoint: a small folder to pass on, without the base."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.card import Card, model_card
from recycle_onnx.checkpoint.folder import TRAINING_LOG, Checkpoint
from recycle_onnx.checkpoint.module import CARD, CONFIG, REFERENCE, WEIGHTS
from recycle_onnx.checkpoint.recycler import FORMAT, RecyclerConfig
from recycle_onnx.checkpoint.weights import Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import new_folder, write_bytes, write_json
from recycle_onnx.provenance import read_source
from recycle_onnx.safetensors_file import write_arrays
from recycle_onnx.untrusted import check_inside, copy_file

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""Types to store a module in, and their names in safetensors."""
STORED = "stored"
"""The type to publish in where none was asked for: the one that the module is stored in."""
LOG_LINES = 500
"""Most lines of a published training log, some 90 kB: enough for its curves."""


def publish(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str = "float16",
    licence: str | None = None,
    base_model: str | None = None,
    acceptance: dict[str, Any] | None = None,
    force: bool = False,
) -> RecyclerConfig:
    """Write the module of `checkpoint` into the folder `out`, laid out as `recycler/`, for `join` to read.

    Weights are rounded to `dtype` (`float16`, `bfloat16`, `float32`, or `stored` for what they are). `licence` is the
    base's, and `base_model` its id on the hub; where they are not given they are what the base's source says, if it
    does. `acceptance` is what was measured of the module, for whoever joins it to compare with.

    Raises:
        InputError: not a checkpoint, one without a module, another `dtype`, weights that it cannot hold, or `out`
            exists (unless `force`).
        RecycleError: the disk is full or not writable.
    """
    if dtype not in (*DTYPES, STORED):
        raise InputError(f"--dtype is {dtype!r}; expected one of: {', '.join([*DTYPES, STORED])}")
    with Checkpoint.open(checkpoint) as opened:
        if opened.recycler is None or opened.recycler_weights is None:
            raise InputError(f"{checkpoint}: has no recyclable module; make one with `recycle-onnx attach` first")
        config = _published(opened, acceptance)
        stored = opened.recycler_weights.stored_type()
        rounded = dtype != STORED and DTYPES[dtype] != stored
        tensors = _tensors(opened.recycler_weights, dtype if rounded else None)
        came_from = config.base.source if config.base else None
        card = Card.of(opened, came_from, next(iter(tensors.values())).dtype.name, licence, base_model)
        with new_folder(out, force=force, keep=opened.folders()) as folder:
            write_arrays(folder / WEIGHTS, tensors)
            if config.draft_vocabulary and opened.draft_ids:
                config.draft_vocabulary.write(folder, opened.draft_ids)
            reference = checkpoint / "recycler" / REFERENCE
            if reference.exists() and not rounded and opened.recycler.trained_on is None:
                copy_file(reference, folder / REFERENCE)
            _write_log(checkpoint / TRAINING_LOG, folder / TRAINING_LOG)
            write_json(folder / CONFIG, config.to_json())
            write_bytes(folder / CARD, model_card(config, card).encode())
    return config


def _published(checkpoint: Checkpoint, acceptance: dict[str, Any] | None) -> RecyclerConfig:
    """Return the config without anything of this machine: the base is described, and no path names it."""
    assert checkpoint.recycler is not None
    base = checkpoint.recycler.trained_on or checkpoint.recycler.base
    if base is None:
        raise InputError(f"{checkpoint.folder}: does not say which base its module is for; train it with this version")
    if not base.describes:
        base = base.described_by(checkpoint.base_folder)
    if not base.describes:
        raise InputError(
            f"{checkpoint.base_folder}: has no tokenizer.json, by which the base is recognised; put it there"
        )
    came_from = (
        read_source(checkpoint.folder, checkpoint.base_folder)
        if checkpoint.recycler.trained_on is None
        else base.source
    )
    base = replace(base, path=None, source=came_from or base.source)
    measured = acceptance or checkpoint.recycler.acceptance
    return replace(checkpoint.recycler, base=base, trained_on=None, acceptance=measured, format=FORMAT)


def _tensors(weights: Weights, dtype: str | None) -> dict[str, NDArray[Any]]:
    tensors = {name: weights.stored(name) for name in sorted(weights.names())}
    if dtype is None:
        return tensors
    with np.errstate(over="ignore"):
        rounded = {name: value.astype(dtype) for name, value in tensors.items()}
    for name, value in rounded.items():
        if not np.isfinite(value).all():
            raise InputError(f"{name} has values that {dtype} cannot hold; give --dtype bfloat16, float32 or stored")
    return rounded


def _write_log(log: Path, published: Path) -> None:
    """Write every so many-th line of the training's log, where there is one."""
    check_inside(log)
    if log.exists():
        lines = log.read_bytes().splitlines(keepends=True)
        write_bytes(published, *lines[:: math.ceil(len(lines) / LOG_LINES) or 1])

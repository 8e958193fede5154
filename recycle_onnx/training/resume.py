"""An unfinished training on disk: all it takes to go on as if nothing had happened, in one file, written whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.temporary import temporary_file

STATE = "training.pt"
"""Beside the module: it is deleted once the training has ended."""


@dataclass
class State:
    """The state of an unfinished training: weights, the optimiser's moments, options and best step.

    Weights are unrounded, as they were after `step`.
    """

    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    step: int
    seconds: float
    options: dict[str, Any]
    best: dict[str, Any] | None = None


def save_state(folder: Path, state: State) -> None:
    """Write the state, or keep the one before.

    Raises:
        RecycleError: the disk is full or not writable.
    """
    try:
        with temporary_file(folder / STATE) as (temporary, file):
            torch.save(vars(state), file)
            file.close()
            temporary.replace(folder / STATE)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError when the disk is full
        raise RecycleError(f"{folder / STATE}: cannot write ({error}); the last state there was kept") from error


def check_state(folder: Path) -> None:
    """Refuse at once where there is nothing to resume.

    Raises:
        InputError: there is no state.
    """
    if not (folder / STATE).exists():
        raise InputError(f"{folder}: no unfinished training to resume; train without --resume")


def load_state(folder: Path, options: dict[str, Any]) -> State:
    """Read the state of a training under these options.

    Raises:
        InputError: there is none, it is damaged, or it was made under other options or data.
    """
    check_state(folder)
    path = folder / STATE
    try:
        state = State(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever its parts do
        raise InputError(f"{path}: damaged ({error}); delete it and train without --resume") from error
    for name, value in options.items():
        if state.options.get(name) != value:
            begun = f"{name.replace('_', '-')} {state.options.get(name)}"
            raise InputError(f"{path}: was begun with {begun}, not {value}; give the same, or leave --resume out")
    return state


def discard_state(folder: Path) -> None:
    """Delete the state of an unfinished training."""
    (folder / STATE).unlink(missing_ok=True)

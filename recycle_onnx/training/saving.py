"""What a training leaves in its checkpoint: the module, the base of a joint training, and the state to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recycle_onnx.checkpoint import RecyclerConfig
from recycle_onnx.checkpoint.recycler import FORMAT
from recycle_onnx.training import storage
from recycle_onnx.training.best import Best
from recycle_onnx.training.options import TrainingResult
from recycle_onnx.training.resume import State, discard_state, load_state, save_state
from recycle_onnx.training.setup import Setup
from recycle_onnx.training.stepper import Stepper

OPTIONS_OF_A_RUN = (
    "joint", "depth", "batch_size", "sequence_length", "seed", "recycle_weight", "weight_decay", "clip", "precision",
    "overlap", "optimizer",
)  # fmt: skip
"""What must be the same in a resumed training; the budget and how a batch is shared out may change."""
CHANGED_BY_TRAINING = ("base", "trained_on", "acceptance", "training", "trained_depth", "format")
"""Fields of `recycler/config.json`; the others are conventions, without which the weights mean nothing."""


class Saver:
    """A writer of the checkpoint, whole or not at all; only the main process may save."""

    def __init__(self, setup: Setup, stepper: Stepper) -> None:
        self._setup, self._stepper = setup, stepper
        checkpoint = setup.checkpoint
        assert checkpoint.recycler is not None
        assert checkpoint.recycler_weights is not None
        self._config = _on_this_base(checkpoint.recycler, checkpoint.base_folder)
        self._earlier: list[Any] = list(self._config.training.get("runs", []))
        kinds = (checkpoint.base_weights.stored_type(), checkpoint.recycler_weights.stored_type())
        self._dtypes = (storage.TORCH_TYPES[kinds[0]], storage.TORCH_TYPES[kinds[1]])

    def restore(self) -> State:
        """Take up weights and optimiser where an earlier training saved them.

        Raises:
            InputError: no state, a damaged one, or one of another training.
        """
        state = load_state(self._setup.checkpoint.folder, self._identity())
        with torch.no_grad():
            for name, parameter in self._stepper.trained.items():
                parameter.copy_(state.parameters[name])
        self._stepper.optimizer.load_state_dict(state.optimizer)
        if self._earlier and self._earlier[-1]["ended"] == "interrupted":
            self._earlier.pop()  # this run's own entry, up to where it was resumed
        return state

    def save(self, result: TrainingResult, best: Best | None, *, unfinished: bool) -> None:
        """Write what was reached, and if it is unfinished how to go on, and the `best` so far.

        Raises:
            RecycleError: the disk is full or not writable; what was saved before is kept.
        """
        checkpoint, model, options = self._setup.checkpoint, self._setup.model, self._setup.options
        text = {"text_tokens": self._setup.train.windows.size}
        runs = [*self._earlier, {**asdict(options), **text, **asdict(result)}]
        config = replace(self._config, trained_depth=options.depth, training={"runs": runs})
        ids = torch.from_numpy(self._setup.held_out.windows.flat[: storage.REFERENCE_TOKENS].astype(np.int64))
        if unfinished:  # before the module: a training killed between the two goes on from the state alone
            save_state(checkpoint.folder, self._state(result, best))
        with self._unrounded():
            if options.joint:
                storage.save_both(checkpoint, model, config, ids, self._dtypes)
            else:
                storage.save_recycler(checkpoint, model, config, ids, self._dtypes[1])
        if not unfinished:
            discard_state(checkpoint.folder)

    def _state(self, result: TrainingResult, best: Best | None) -> State:
        parameters = {name: parameter.detach() for name, parameter in self._stepper.trained.items()}
        optimizer = self._stepper.optimizer.state_dict()
        kept = None if best is None else {"parameters": best.parameters, "result": asdict(best.result)}
        return State(parameters, optimizer, result.steps, result.seconds, self._identity(), kept)

    def _identity(self) -> dict[str, Any]:
        options = {name: getattr(self._setup.options, name) for name in OPTIONS_OF_A_RUN}
        module = {name: value for name, value in self._config.to_json().items() if name not in CHANGED_BY_TRAINING}
        conventions = {f"the module's {name}": value for name, value in module.items()}
        optimizer, text = self._setup.options.chosen_optimizer, self._setup.text
        return {**options, **conventions, "optimizer": optimizer, "learning_rate": self._stepper.peak, "data": text}

    @contextmanager
    def _unrounded(self) -> Iterator[None]:
        """Restore the weights after saving has rounded them to the stored type."""
        own = {parameter: parameter.detach().clone() for parameter in self._stepper.trained.values()}
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in own.items():
                    parameter.copy_(value)


def _on_this_base(config: RecyclerConfig, base_folder: Path) -> RecyclerConfig:
    """Describe the base that the module is trained on from now on, and drop what an earlier training recorded."""
    base = config.base
    if base is not None and not base.describes:
        base = base.described_by(base_folder)
    return replace(config, base=base, trained_on=None, acceptance=None, format=FORMAT)

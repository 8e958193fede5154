"""All that a training needs, read and checked before anything is changed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.checkpoint.draft_vocabulary import DraftFile, check_size, most_frequent
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.training import storage
from recycle_onnx.training.data import Examples, Windows
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import OWN_TOKENS, Precision, TrainingOptions
from recycle_onnx.training.precision import best_precision
from recycle_onnx.training.processes import Processes
from recycle_onnx.training.reader import Reader
from recycle_onnx.training.target_cache import CachedTargets

ALONE = (
    "`accelerate launch --cpu` starts a single process where there is no mpirun; for several put "
    "ACCELERATE_USE_CPU=true before `accelerate launch --multi_gpu`"
)


Stage = Callable[[str], AbstractContextManager[Progress]]
"""Begins a long work by its title, and gives what tells how far it is."""


@contextmanager
def silent_stage(title: str) -> Iterator[Progress]:
    """Begin a stage without showing any progress."""
    yield silent


@dataclass
class Setup:
    """A checkpoint, its model on this process's device, and the text to train on."""

    checkpoint: Checkpoint
    model: RecycleGPT
    train: Examples
    held_out: Examples
    options: TrainingOptions
    """With nothing left to decide: `precision` and `own_tokens` say what is done."""
    processes: Processes

    @property
    def own_tokens(self) -> int:
        """The number of tokens of the text that the base writes itself."""
        if self.options.regenerate:
            return int(self.train.windows.size + self.held_out.windows.size)
        return self.options.own_tokens or 0

    @property
    def precision(self) -> Precision:
        """What the base, and what is trained, are computed in."""
        assert self.options.precision is not None
        return self.options.precision

    @cached_property
    def text(self) -> str:
        """What the training text is recognised by."""
        windows = self.train.windows
        return f"{windows.size} tokens, {zlib.crc32(np.ascontiguousarray(windows).data):08x}"

    def fill_caches(self, stage: Stage) -> None:
        """Let a frozen base read what it has not read yet, once a machine.

        Raises:
            RecycleError: the disk is full or not writable; what was filled is kept.
        """
        for examples, name in ((self.held_out, "held-out text"), (self.train, "text")):
            with self.processes.one_a_machine_first():
                if examples.targets and examples.targets.missing:
                    with stage(f"the base reads the {name}") as progress:
                        examples.targets.fill(progress)


@contextmanager
def set_up(
    folder: Path,
    data: list[Path],
    held_out: list[Path],
    options: TrainingOptions,
    notice: Callable[[str], None],
    stage: Stage = silent_stage,
    *,
    write: bool = True,
) -> Iterator[Setup]:
    """Open the checkpoint `folder` and read the text; what the base writes itself is written unless not `write`.

    Raises:
        InputError: no module, no text, a base that cannot be changed, or options out of range.
    """
    options.check()
    processes = Processes()
    processes.check_batch(options.batch_size, options.gradient_accumulation)
    # What `accelerate launch --cpu` leaves in the environment of the single process that it starts.
    if processes.count == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        notice(ALONE)
    with Checkpoint.open(folder) as checkpoint:
        options = _with_depth(options, checkpoint)
        _check(checkpoint, data, options)
        options = _decided(options, data, processes, notice)
        # A base that learns is held in float32: of small steps bfloat16 would keep nothing.
        held = torch.bfloat16 if options.precision == "bf16" and not options.joint else torch.float32
        model = storage.load_model(checkpoint, held).to(processes.device)
        with processes.one_a_machine_first():
            corpus = Reader(checkpoint, model, options, notice, stage, write).corpus(data, held_out)
        if options.draft_vocab:
            checkpoint = _with_draft_vocabulary(checkpoint, model, corpus.train, options.draft_vocab)
        train, measured = (_examples(checkpoint, model, part, options) for part in (corpus.train, corpus.held_out))
        if train.targets and train.targets.uncached:
            room = len(train) - train.targets.uncached
            notice(
                f"--cache-gb {options.cache_gb:g} has room for {room:,} of {len(train):,} windows of text: "
                "the base reads the others anew in every epoch"
            )
        yield Setup(checkpoint, model, train, measured, options, processes)


def _with_depth(options: TrainingOptions, checkpoint: Checkpoint) -> TrainingOptions:
    """Shorten the usual depth to the places of a module without layers, whose chains are no longer.

    Raises:
        InputError: another depth was asked for, and it is longer.
    """
    module = checkpoint.recycler
    if module is None or module.join is not None or options.depth <= module.places:
        return options
    if options.depth == TrainingOptions.depth:
        return replace(options, depth=module.places)
    raise InputError(
        f"{checkpoint.folder}: --depth {options.depth} of a module that has {module.size}; "
        f"expected at most {module.places}"
    )


def _check(checkpoint: Checkpoint, data: list[Path], options: TrainingOptions) -> None:
    module = checkpoint.recycler
    if options.joint and checkpoint.base_folder != checkpoint.folder:
        raise InputError(
            f"{checkpoint.folder}: its base lies elsewhere and stays untouched; use --freeze-base, or attach a copy"
        )
    if options.joint and not data:
        raise InputError("--joint needs text to learn from: name it with --data")
    if options.draft_vocab and module is not None and module.lm_head == "own":
        raise InputError(f"{checkpoint.folder}: its module has an LM head of its own; leave --draft-vocab out")
    if options.regenerate and not data:
        raise InputError("--regenerate needs --data, whose beginnings the base goes on from; or leave it out")
    length = options.sequence_length
    if length > checkpoint.base.context_length:
        raise InputError(f"--sequence-length {length} is beyond the context of {checkpoint.base.context_length}")


def _with_draft_vocabulary(
    checkpoint: Checkpoint, model: RecycleGPT, parts: tuple[Windows, ...], size: int
) -> Checkpoint:
    """Let the module know the most frequent tokens of the training text only."""
    check_size(size, checkpoint.base.vocab_size)
    counts = sum(np.bincount(part.ravel(), minlength=checkpoint.base.vocab_size) for part in parts)
    ids = most_frequent(size, np.asarray(counts).tolist())
    model.draft_ids = torch.tensor(ids, device=model.full.lm_head.weight.device)
    assert checkpoint.recycler is not None
    return replace(checkpoint, recycler=replace(checkpoint.recycler, draft_vocabulary=DraftFile(size)), draft_ids=ids)


def _decided(
    options: TrainingOptions, data: list[Path], processes: Processes, notice: Callable[[str], None]
) -> TrainingOptions:
    """Fill in the options that depend on the device and on the text; all processes take the main one's."""
    own = options.own_tokens or (0 if data else OWN_TOKENS)
    precision = options.precision or ("fp32" if options.joint else best_precision(processes.device, notice))
    # Their devices may differ; weights that are to stay equal are computed in the same numbers.
    precision = "bf16" if processes.agree(float(precision == "bf16")) else "fp32"
    return replace(options, precision=precision, own_tokens=own)


def _examples(
    checkpoint: Checkpoint, model: RecycleGPT, parts: tuple[Windows, ...], options: TrainingOptions
) -> Examples:
    if options.joint:
        return Examples(parts)
    limit = int(options.cache_gb * 1e9)
    return Examples(parts, CachedTargets(model.full, checkpoint.base_weights.digest(), parts, limit))

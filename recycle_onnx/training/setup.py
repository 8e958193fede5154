"""All that a training needs, read and checked before anything is changed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.errors import InputError
from recycle_onnx.training import storage
from recycle_onnx.training.data import Corpus, split
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.processes import Processes
from recycle_onnx.training.regenerate import regenerate
from recycle_onnx.training.tokens import Tokens, tokenise

ALONE = (
    "`accelerate launch --cpu` starts a single process where there is no mpirun; for several put "
    "ACCELERATE_USE_CPU=true before `accelerate launch --multi_gpu`"
)


@dataclass
class Setup:
    """A checkpoint, its model on this process's device, and the text."""

    checkpoint: Checkpoint
    model: RecycleGPT
    corpus: Corpus
    options: TrainingOptions
    processes: Processes

    @cached_property
    def text(self) -> str:
        """What the training text is recognised by."""
        return f"{len(self.corpus.train)} tokens, {zlib.crc32(self.corpus.train.data):08x}"


@contextmanager
def set_up(
    folder: Path, data: list[Path], held_out: list[Path], options: TrainingOptions, notice: Callable[[str], None]
) -> Iterator[Setup]:
    """Open the checkpoint `folder` and read the text.

    Raises:
        InputError: no module, no text, a base that cannot be changed, or options out of range.
    """
    options.check()
    processes = Processes()
    processes.check_batch(options.batch_size, options.gradient_accumulation)
    if processes.count == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        notice(ALONE)
    with Checkpoint.open(folder) as checkpoint:
        _check(checkpoint, options)
        held = torch.bfloat16 if options.precision == "bf16" and not options.joint else torch.float32
        model = storage.load_model(checkpoint, held).to(processes.device)
        with processes.one_a_machine_first():
            corpus = _corpus(checkpoint, model, data, held_out, options, notice)
        yield Setup(checkpoint, model, corpus, options, processes)


def _check(checkpoint: Checkpoint, options: TrainingOptions) -> None:
    if options.joint and checkpoint.base_folder != checkpoint.folder:
        raise InputError(
            f"{checkpoint.folder}: its base lies elsewhere and stays untouched; use --freeze-base, or attach a copy"
        )
    length = options.sequence_length
    if length > checkpoint.base.context_length:
        raise InputError(f"--sequence-length {length} is beyond the context of {checkpoint.base.context_length}")


def _corpus(
    checkpoint: Checkpoint,
    model: RecycleGPT,
    data: list[Path],
    held_out: list[Path],
    options: TrainingOptions,
    notice: Callable[[str], None],
) -> Corpus:
    """The given text, or text of the base's own that begins like it."""

    def read(paths: list[Path]) -> Tokens:
        if not options.regenerate:
            return tokenise(checkpoint.base_folder, paths, checkpoint.base.vocab_size, options.field, notice)
        return regenerate(
            checkpoint, model.full, paths, length=options.sequence_length, temperature=options.temperature,
            seed=options.seed, field=options.field, notice=notice,
        )  # fmt: skip

    name = ", ".join(map(str, data))
    return split(name, read(data), read(held_out) if held_out else None, options.sequence_length)

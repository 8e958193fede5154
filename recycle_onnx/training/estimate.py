"""What a training will take, before it starts: text, time, memory and disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.weights import Weights
from recycle_onnx.training import storage
from recycle_onnx.training.budget import DEFAULT_MINUTES, Budget
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.precision import multiplies_bf16
from recycle_onnx.training.setup import Setup, set_up
from recycle_onnx.training.stepper import Stepper

TIMED_STEPS = 2
"""Real steps; the last one counts, the first one also sets things up."""
MOMENTS = 2
"""Numbers that AdamW keeps for each that it trains, besides the gradient."""
LOSS_COPIES = 4
"""Of the logits of one place of a chain in float32, while its loss and its gradient are computed."""
LOG_LINE = 300
"""Bytes of a step in training.jsonl, about."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. `activations` are kept for the gradient, `logits` are those of one part of a batch with
    what their loss needs at once. `measured_peak` is None where no step was run.
    """

    model: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int
    measured_peak: int | None


@dataclass(frozen=True)
class Disk:
    """Bytes of what is written; while a file is replaced the old one and the new lie side by side."""

    weights: int
    state: int
    log: int
    token_cache: int


@dataclass(frozen=True)
class Estimate:
    """Tokens of the text and of the budget, steps, hours (None where a step does not fit into memory), bytes."""

    device: str
    processes: int
    text_tokens: int
    held_out_tokens: int
    tokens: int | None
    steps: int | None
    passes: float | None
    seconds_a_step: float | None
    hours: float | None
    memory: Memory
    free_memory: int
    disk: Disk


def estimate(
    folder: Path,
    data: list[Path],
    options: TrainingOptions,
    *,
    held_out: list[Path] | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Say what `train` would take with these arguments; nothing is written but the cache of token ids.

    Time is that of a real step in memory. Where `options.regenerate`, the given text stands for the one to be written.

    Raises:
        InputError: as `train` does.
    """
    if options.regenerate:
        notice("the base's own text is not written for an estimate: the given text stands for it")
    with set_up(folder, data, held_out or [], replace(options, regenerate=False), notice) as setup:
        stepper = Stepper(setup)
        memory = _memory(setup, stepper)
        free = _free(setup.processes.device)
        seconds = None
        if not setup.processes.any(memory.total - memory.model > free):
            seconds = setup.processes.agree(_seconds_a_step(setup, stepper))
            memory = replace(memory, measured_peak=_peak(setup.processes.device))
        return _estimate(setup, seconds, memory, free)


def _estimate(setup: Setup, seconds: float | None, memory: Memory, free: int) -> Estimate:
    options, corpus = setup.options, setup.corpus
    steps = _steps(options, seconds)
    tokens = None if steps is None else steps * options.batch_size * options.sequence_length
    return Estimate(
        device=str(setup.processes.device),
        processes=setup.processes.count,
        text_tokens=len(corpus.train),
        held_out_tokens=len(corpus.held_out),
        tokens=tokens,
        steps=steps,
        passes=None if tokens is None else tokens / len(corpus.train),
        seconds_a_step=seconds,
        hours=None if steps is None or seconds is None else steps * seconds / 3600,
        memory=memory,
        free_memory=free,
        disk=Disk(
            weights=_stored(setup),
            state=memory.gradients + memory.optimizer,  # as many weights as gradients
            log=(steps or 0) * LOG_LINE,
            token_cache=corpus.train.nbytes + corpus.held_out.nbytes,
        ),
    )


def _steps(options: TrainingOptions, seconds: float | None) -> int | None:
    """Steps until the budget is spent; without one, those of the longest training."""
    budget = Budget(options.steps, options.tokens, options.minutes)
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return math.ceil(budget.tokens / (options.batch_size * options.sequence_length))
    return None if seconds is None else math.ceil(60 * (budget.minutes or DEFAULT_MINUTES) / seconds)


def _seconds_a_step(setup: Setup, stepper: Stepper) -> float:
    """Of the last of a few real steps."""
    options = setup.options
    batches = setup.corpus.batches(options.batch_size, options.sequence_length, options.seed)
    seconds = 0.0
    for number, batch in enumerate(islice(batches, TIMED_STEPS), start=1):
        began = time.perf_counter()
        stepper.step(number, batch, 0.0).recycle.item()
        seconds = time.perf_counter() - began
    return seconds


def _memory(setup: Setup, stepper: Stepper) -> Memory:
    """Computed, before any of it is used."""
    options = setup.options
    model = _bytes(setup.model.parameters()) + _bytes(setup.model.buffers())
    trained = _bytes(stepper.trained.values())
    windows = options.batch_size // (setup.processes.count * options.gradient_accumulation)
    # what one window keeps and what two keep tell what many do
    two = next(setup.corpus.batches(2, options.sequence_length, options.seed)).to(setup.processes.device)
    one, both = (stepper.kept(two[:count]) for count in (1, 2))
    activations = one + (windows - 1) * max(both - one, 0)
    numbers = windows * options.sequence_length * setup.checkpoint.base.vocab_size
    narrow = options.precision == "bf16" and multiplies_bf16(setup.processes.device)
    logits = numbers * ((options.depth + 1) * (2 if narrow else 4) + LOSS_COPIES * 4)
    total = model + (1 + MOMENTS) * trained + activations + logits
    return Memory(model, trained, MOMENTS * trained, activations, logits, total, None)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _peak(device: torch.device) -> int | None:
    """The most that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _stored(setup: Setup) -> int:
    """Bytes of the files that a training writes anew."""
    checkpoint = setup.checkpoint
    halves: list[tuple[nn.Module, Weights | BaseWeights | None]] = [(setup.model.recycler, checkpoint.recycler_weights)]
    if setup.options.joint:
        halves.append((setup.model.full, checkpoint.base_weights))
    total = 0
    for half, weights in halves:
        assert weights is not None
        size = storage.TORCH_TYPES[weights.stored_type()].itemsize
        total += size * sum(parameter.numel() for parameter in half.parameters())
    return total

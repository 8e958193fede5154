"""What a training will take, before it starts: text, time, memory and disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor, nn

from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.weights import Weights
from recycle_onnx.script import Opening, Turn
from recycle_onnx.training import head_loss, storage
from recycle_onnx.training.budget import DEFAULT_MINUTES, Budget
from recycle_onnx.training.data import batches
from recycle_onnx.training.options import Precision, TrainingOptions
from recycle_onnx.training.own_text import AT_ONCE, writers
from recycle_onnx.training.precision import multiplies_bf16, product_speeds
from recycle_onnx.training.setup import Setup, set_up
from recycle_onnx.training.side_by_side import side_by_side
from recycle_onnx.training.stepper import Stepper
from recycle_onnx.training.target_cache import bytes_a_token
from recycle_onnx.training.writer import write_windows

T = TypeVar("T")
TIMED_TOKENS = 8
"""Of each of the texts that the base writes for an estimate."""
TIMED_STEPS = 2
"""Real steps; the last one counts, the first one also sets things up."""
LOSS_COPIES = 4
"""Of the logits of one place of a chain in float32, while its loss and its gradient are computed."""
LOG_LINE = 300
"""Bytes of a step in training.jsonl, about."""


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of one process, in bytes.

    `activations` are kept for the gradient, `logits` are those of one part of a batch with what their loss needs.
    `measured_peak` is None where no step was run.
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
    """The disk that a training takes, in bytes; while a file is replaced the old one and the new lie side by side.

    `target_cache` is what a frozen base says of the text, as far as --cache-gb has room for it.
    """

    weights: int
    state: int
    log: int
    token_cache: int
    target_cache: int


@dataclass(frozen=True)
class TrainingEstimate:
    """The time, memory and disk that a training takes.

    `steps` and `hours` are None where a step does not fit into memory.

    `hours` are all of it: those in which the base writes its own text, in which it reads other text into the cache,
    and those of the steps. `product_speeds` are billions of operations a second of matrix products, by precision.
    """

    device: str
    processes: int
    text_tokens: int
    held_out_tokens: int
    tokens: int | None
    steps: int | None
    passes: float | None
    seconds_a_step: float | None
    writing_hours: float
    reading_hours: float
    hours: float | None
    precision: Precision
    product_speeds: dict[Precision, float]
    memory: TrainingMemory
    free_memory: int
    disk: Disk


def estimate(
    folder: Path,
    data: list[Path],
    options: TrainingOptions,
    *,
    held_out: list[Path] | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> TrainingEstimate:
    """Say what `train` would take with these arguments; nothing is written but the cache of token ids.

    Times are those of real work in memory: a step, windows that the base reads, tokens that it writes.

    Raises:
        InputError: as `train` does.
    """
    with set_up(folder, data, held_out or [], replace(options, cache_gb=0), notice, write=False) as setup:
        stepper = Stepper(setup)
        memory = _memory(setup, stepper)
        free = _free(setup.processes.device)
        times = None
        if not setup.processes.any(memory.total - memory.model > free):
            times = _times(setup, stepper, options)
            memory = replace(memory, measured_peak=_peak(setup.processes.device))
        return _estimate(setup, options, times, memory, free)


class _Times(NamedTuple):
    """The seconds of a step, without what the cache spares it, and of what comes before the first one."""

    step: float
    writing: float
    reading: float


def _estimate(
    setup: Setup, options: TrainingOptions, times: _Times | None, memory: TrainingMemory, free: int
) -> TrainingEstimate:
    text = setup.train.windows.size
    seconds = times and times.step
    steps = _steps(options, seconds)
    tokens = None if steps is None else steps * options.batch_size * options.sequence_length
    before = (times.writing, times.reading) if times else (0.0, 0.0)
    return TrainingEstimate(
        device=str(setup.processes.device),
        processes=setup.processes.count,
        text_tokens=text,
        held_out_tokens=setup.held_out.windows.size,
        tokens=tokens,
        steps=steps,
        passes=None if tokens is None else tokens / text,
        seconds_a_step=seconds,
        writing_hours=before[0] / 3600,
        reading_hours=before[1] / 3600,
        hours=None if steps is None or seconds is None else (steps * seconds + sum(before)) / 3600,
        precision=setup.precision,
        product_speeds=product_speeds(setup.processes.device),
        memory=memory,
        free_memory=free,
        disk=Disk(
            weights=_stored(setup),
            state=2 * memory.gradients + memory.optimizer,  # as many weights as gradients, and those of the best step
            log=(steps or 0) * LOG_LINE,
            token_cache=4 * (text + setup.held_out.windows.size),
            target_cache=_cached_tokens(setup, options) * bytes_a_token(setup.model.full),
        ),
    )


def _cached_tokens(setup: Setup, options: TrainingOptions) -> int:
    """Count the tokens whose targets the cache keeps."""
    if options.joint:
        return 0
    room = int(options.cache_gb * 1e9) // bytes_a_token(setup.model.full)
    return min(setup.train.windows.size + setup.held_out.windows.size, room)


def _steps(options: TrainingOptions, seconds: float | None) -> int | None:
    """Return the steps until the budget is spent; without one, those of the longest training."""
    budget = Budget(options.steps, options.tokens, options.minutes)
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return math.ceil(budget.tokens / (options.batch_size * options.sequence_length))
    return None if seconds is None else math.ceil(60 * (budget.minutes or DEFAULT_MINUTES) / seconds)


def _times(setup: Setup, stepper: Stepper, options: TrainingOptions) -> _Times:
    """Measure real steps, reading and writing; every process takes the main one's seconds."""
    numbers = batches(len(setup.train), options.batch_size, options.seed)
    step = reading = 0.0
    for number, windows in enumerate(islice(numbers, TIMED_STEPS), start=1):
        part = setup.processes.share(windows, 1)[0]
        reading, _ = timed(partial(setup.train.batch, part, setup.processes.device))
        # With a learning rate of 0, so that an estimate changes no weights.
        step, _ = timed(partial(stepper.step, number, windows, 0.0))
    if options.joint:
        reading = 0.0
    cached = _cached_tokens(setup, options)
    spared = reading * min(1.0, cached / setup.train.windows.size)
    unread = max(0, cached - setup.own_tokens)  # what the base writes it has read
    fill = reading / (len(part) * options.sequence_length) * unread
    writing = setup.own_tokens / writing_speed(setup) if setup.own_tokens else 0.0
    # Never 0, whatever the noise of two measurements: a budget in minutes is divided by it.
    return _Times(*(setup.processes.agree(seconds) for seconds in (max(step - spared, 1e-6), writing, fill)))


def writing_speed(setup: Setup) -> float:
    """Measure how many tokens per second the base writes, from a few tokens of texts written together."""
    model, begun = setup.model.full, [Opening((0,), 0)] * AT_ONCE
    turns = (Turn(frozenset(), (), (1.0,)),)

    def write(seed: int, stopped: Event) -> int:
        return write_windows(model, begun, turns, TIMED_TOKENS, seed, stopped).windows.numel()

    files = writers(model)
    seconds, written = timed(lambda: sum(side_by_side(write, range(files), files)))
    return written / seconds


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that the work takes, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _memory(setup: Setup, stepper: Stepper) -> TrainingMemory:
    """Compute the memory of a training before any of it is used."""
    options = setup.options
    model = _bytes(setup.model.parameters()) + _bytes(setup.model.buffers())
    trained = _bytes(stepper.trained.values())
    windows = options.batch_size // (setup.processes.count * options.gradient_accumulation)
    # what one window keeps and what two keep tell what many do
    one, both = (stepper.kept([0] * count) for count in (1, 2))
    activations = one + (windows - 1) * max(both - one, 0)
    logits = _logits(setup, windows * options.sequence_length)
    total = model + trained + stepper.moments + activations + logits
    return TrainingMemory(model, trained, stepper.moments, activations, logits, total, None)


def _logits(setup: Setup, rows: int) -> int:
    """Compute the bytes of the logits that exist at once with what their loss needs, for a batch of so many rows."""
    vocabulary = setup.checkpoint.base.vocab_size
    if not setup.options.joint:
        draft = vocabulary if setup.model.draft_ids is None else len(setup.model.draft_ids)
        return min(rows, head_loss.ROWS) * draft * LOSS_COPIES * 4
    narrow = setup.precision == "bf16" and multiplies_bf16(setup.processes.device)
    return rows * vocabulary * ((setup.options.depth + 1) * (2 if narrow else 4) + LOSS_COPIES * 4)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _peak(device: torch.device) -> int | None:
    """Return the most bytes that this process has held so far."""
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
    """Count the bytes of the files that a training writes anew."""
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

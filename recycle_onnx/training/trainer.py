"""The training loop: updates a checkpoint in place, whole or not at all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.errors import InputError
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.training import objective, storage
from recycle_onnx.training.data import Corpus, load_corpus
from recycle_onnx.training.model import RecycleGPT

HELD_OUT_WINDOWS = 64
WARM_UP = 0.05
CLIP = 1.0


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. `learning_rate` None means 1e-3 · sqrt(256 / hidden size)."""

    joint: bool = False
    steps: int = 1000
    batch_size: int = 16
    sequence_length: int = 256
    learning_rate: float | None = None
    weight_decay: float = 0.01
    recycle_weight: float = 1.0
    seed: int = 0
    save_minutes: float = 10.0


@dataclass(frozen=True)
class Progress:
    """The state after a step: training losses in nats a token, and how fast it goes."""

    step: int
    steps: int
    next_token: float
    recycle: float
    acceptance: float
    tokens_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """What was reached, measured on held-out text (nats a token; acceptance is greedy, on the given text)."""

    steps: int
    interrupted: bool
    held_out_next_token: float
    held_out_recycle: float
    held_out_acceptance: float
    seconds: float


def train(
    folder: Path,
    data: list[Path],
    options: TrainingOptions,
    *,
    held_out: list[Path] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> TrainingResult:
    """Train the module of the checkpoint `folder`, and its base too when `options.joint`.

    Ctrl-C ends the training early and keeps what was learnt.

    Raises:
        InputError: no module, no text, a base that cannot be changed, or options out of range.
    """
    _check(options)
    with Checkpoint.open(folder) as checkpoint:
        if options.joint and checkpoint.base_folder != checkpoint.folder:
            raise InputError(
                f"{folder}: its base lies elsewhere and stays untouched; use --freeze-base, or attach a copy"
            )
        length = options.sequence_length
        if length > checkpoint.base.context_length:
            raise InputError(f"--sequence-length {length} is beyond the context of {checkpoint.base.context_length}")
        model = storage.load_model(checkpoint)
        tokenizer = load_tokenizer(checkpoint.base_folder)
        corpus = load_corpus(tokenizer, data, held_out or [], checkpoint.base.vocab_size, length)
        run = _Run(checkpoint, model, corpus, options)
        return run.go(report)


def _check(options: TrainingOptions) -> None:
    for name in ("steps", "batch_size"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected at least 1")
    if options.sequence_length < 8:
        raise InputError(f"--sequence-length is {options.sequence_length}; expected at least 8")
    if options.learning_rate is not None and not 0 < options.learning_rate < 1:
        raise InputError(f"--lr is {options.learning_rate}; expected a number between 0 and 1")


class _Run:
    """One training: model, optimiser, schedule and when to save."""

    def __init__(self, checkpoint: Checkpoint, model: RecycleGPT, corpus: Corpus, options: TrainingOptions) -> None:
        self.checkpoint, self.model, self.corpus, self.options = checkpoint, model, corpus, options
        self.losses = objective.joint if options.joint else objective.frozen_base
        self.model.full.requires_grad_(options.joint)
        self.optimizer, self.schedule = _optimizer(model, options, checkpoint.base.hidden_size)
        self.dtypes = (_stored_dtype(checkpoint.base_weights), _stored_dtype(checkpoint.recycler_weights))
        self.started = self.saved = time.perf_counter()

    def go(self, report: Callable[[Progress], None]) -> TrainingResult:
        step, interrupted = 0, False
        try:
            for step, batch in enumerate(self._batches(), start=1):
                losses = self._step(batch)
                report(self._progress(step, losses))
                if time.perf_counter() - self.saved > 60 * self.options.save_minutes:
                    self._save(self._result(step, interrupted=True))
        except KeyboardInterrupt:
            interrupted = True
        result = self._result(step, interrupted)
        self._save(result)
        return result

    def _batches(self) -> Iterator[Tensor]:
        options = self.options
        endless = self.corpus.batches(options.batch_size, options.sequence_length, options.seed)
        return islice(endless, options.steps)

    def _step(self, batch: Tensor) -> objective.Losses:
        losses = self.losses(self.model, batch)
        total = losses.recycle
        if self.options.joint:
            total = losses.next_token + self.options.recycle_weight * losses.recycle
        if not torch.isfinite(total):
            raise InputError(f"the loss became {total.item()}; nothing more was saved: train with a lower --lr")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        return losses

    def _progress(self, step: int, losses: objective.Losses) -> Progress:
        tokens = step * self.options.batch_size * self.options.sequence_length
        speed = tokens / (time.perf_counter() - self.started)
        next_token, recycle, acceptance = (value.item() for value in losses)
        return Progress(step, self.options.steps, next_token, recycle, acceptance, speed)

    def _result(self, step: int, interrupted: bool) -> TrainingResult:
        batches = self.corpus.held_out_batches(self.options.batch_size, self.options.sequence_length, HELD_OUT_WINDOWS)
        with torch.no_grad():
            rows = [torch.stack(list(self.losses(self.model, batch))) * len(batch) for batch in batches]
        count = min(len(self.corpus.held_out) // self.options.sequence_length, HELD_OUT_WINDOWS)
        next_token, recycle, acceptance = (torch.stack(rows).sum(0) / count).tolist()
        seconds = time.perf_counter() - self.started
        return TrainingResult(step, interrupted, next_token, recycle, acceptance, seconds)

    def _save(self, result: TrainingResult) -> None:
        config = self.checkpoint.recycler
        assert config is not None
        earlier: list[Any] = list(config.training.get("runs", []))
        runs = [*earlier, {**asdict(self.options), **asdict(result)}]
        config = replace(config, trained_depth=1, training={"runs": runs})
        ids = torch.from_numpy(self.corpus.held_out[: storage.REFERENCE_TOKENS])
        with _Unrounded(self.model):
            if self.options.joint:
                storage.save_both(self.checkpoint, self.model, config, ids, self.dtypes)
            else:
                storage.save_recycler(self.checkpoint.folder, self.model, config, ids, self.dtypes[1])
        self.saved = time.perf_counter()


class _Unrounded:
    """Restores the weights after saving has rounded them to the stored type."""

    def __init__(self, model: RecycleGPT) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def __exit__(self, *_: object) -> None:
        self.model.load_state_dict(self.state)


def _stored_dtype(weights: Any) -> torch.dtype:
    return storage.TORCH_TYPES[weights.stored_type()]


def _optimizer(
    model: RecycleGPT, options: TrainingOptions, hidden_size: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a linear warm-up and a cosine decay to a tenth; norms are not decayed."""
    rate = options.learning_rate or 1e-3 * math.sqrt(256 / hidden_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    warm_up = max(1, round(WARM_UP * options.steps))

    def scale(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warm_up) / max(1, options.steps - warm_up)))
        return min(1.0, (step + 1) / warm_up) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)

"""The training loop: updates a checkpoint in place, whole or not at all."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.training import objective, storage
from recycle_onnx.training.budget import Budget, Plateau, learning_rate
from recycle_onnx.training.data import Corpus, split
from recycle_onnx.training.log import Log
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import Ended, Progress, TrainingOptions, TrainingResult
from recycle_onnx.training.regenerate import regenerate
from recycle_onnx.training.resume import State, discard_state, load_state, save_state
from recycle_onnx.training.tokens import Tokens, tokenise

HELD_OUT_WINDOWS = 64
CLIP = 1.0
MEASUREMENTS = 20
"""Of held-out text in a training without a budget."""


def train(
    folder: Path,
    data: list[Path],
    options: TrainingOptions,
    *,
    held_out: list[Path] | None = None,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    report: Callable[[Progress], None] = lambda _: None,
) -> TrainingResult:
    """Train the module of the checkpoint `folder`, and its base too when `options.joint`.

    Ctrl-C ends the training early and keeps what was learnt; `resume` goes on where such a training, or one that was
    killed, last saved.

    Raises:
        InputError: no module, no text, a base that cannot be changed, or options out of range.
    """
    options.check()
    with Checkpoint.open(folder) as checkpoint:
        if options.joint and checkpoint.base_folder != checkpoint.folder:
            raise InputError(
                f"{folder}: its base lies elsewhere and stays untouched; use --freeze-base, or attach a copy"
            )
        length = options.sequence_length
        if length > checkpoint.base.context_length:
            raise InputError(f"--sequence-length {length} is beyond the context of {checkpoint.base.context_length}")
        model = storage.load_model(checkpoint)
        corpus = _corpus(checkpoint, model, data, held_out or [], options, notice)
        run = _Run(checkpoint, model, corpus, options)
        if resume:
            run.restore()
        else:
            discard_state(folder)
        return run.go(report)


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


class _Run:
    """One training: model, optimiser, budget and when to save."""

    def __init__(self, checkpoint: Checkpoint, model: RecycleGPT, corpus: Corpus, options: TrainingOptions) -> None:
        self.checkpoint, self.model, self.corpus, self.options = checkpoint, model, corpus, options
        self.losses = partial(objective.joint if options.joint else objective.frozen_base, depth=options.depth)
        self.model.full.requires_grad_(options.joint)
        self.budget = Budget(options.steps, options.tokens, options.minutes)
        self.peak = options.learning_rate or 1e-3 * math.sqrt(256 / checkpoint.base.hidden_size)
        self.optimizer = _optimizer(model, options.weight_decay)
        self.dtypes = (_stored_dtype(checkpoint.base_weights), _stored_dtype(checkpoint.recycler_weights))
        self.first = 1
        self.plateau, self.measured = Plateau(), 0
        self.began = self.started = self.saved = time.perf_counter()

    def restore(self) -> None:
        """Go on where an earlier run saved."""
        state = load_state(self.checkpoint.folder, self._identity())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in state.parameters:
                    parameter.copy_(state.parameters[name])
        self.optimizer.load_state_dict(state.optimizer)
        self.first = state.step + 1
        self.started -= state.seconds

    def go(self, report: Callable[[Progress], None]) -> TrainingResult:
        log = Log(self.checkpoint.folder, self.first)
        step = self.first - 1
        ended: Ended = "budget"
        try:
            for step, batch in enumerate(self._batches(), start=self.first):
                losses = self._step(step, batch)
                progress = self._progress(step, losses)
                log.add(**asdict(progress))
                report(progress)
                if progress.spent >= 1:
                    break
                if time.perf_counter() - self.saved > 60 * self.options.save_minutes:
                    self._save(self._result(step, "interrupted"), unfinished=True)
                if self.budget.is_open and self._has_stopped_rising(step, progress.spent):
                    ended = "plateau"
                    break
        except KeyboardInterrupt:
            ended = "interrupted"
        result = self._result(step, ended)
        self._save(result, unfinished=ended == "interrupted")
        return result

    def _batches(self) -> Iterator[Tensor]:
        options = self.options
        endless = self.corpus.batches(options.batch_size, options.sequence_length, options.seed)
        return islice(endless, self.first - 1, None)

    def _step(self, step: int, batch: Tensor) -> objective.Losses:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.peak, self._spent(step - 1), step - 1)
        losses = self.losses(self.model, batch)
        total = losses.recycle
        if self.options.joint:
            total = losses.next_token + self.options.recycle_weight * losses.recycle
        if not torch.isfinite(total):
            raise RecycleError(
                f"the loss became {total.item()} in step {step}; what was saved before is kept: train with a lower --lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return losses

    def _spent(self, step: int) -> float:
        tokens = step * self.options.batch_size * self.options.sequence_length
        return self.budget.progress(step, tokens, time.perf_counter() - self.started)

    def _progress(self, step: int, losses: objective.Losses) -> Progress:
        tokens = (step - self.first + 1) * self.options.batch_size * self.options.sequence_length
        speed = tokens / (time.perf_counter() - self.began)
        rates = tuple(losses.acceptance.tolist())
        return Progress(step, self._spent(step), losses.next_token.item(), losses.recycle.item(), rates, speed)

    def _has_stopped_rising(self, step: int, spent: float) -> bool:
        if spent * MEASUREMENTS < self.measured + 1:
            return False
        self.measured += 1
        return self.plateau.reached(self._result(step, "plateau").held_out_acceptance[0])

    def _result(self, step: int, ended: Ended) -> TrainingResult:
        batches = self.corpus.held_out_batches(self.options.batch_size, self.options.sequence_length, HELD_OUT_WINDOWS)
        rows = []
        with torch.no_grad():
            for batch in batches:
                losses = self.losses(self.model, batch)
                row = torch.cat([losses.next_token[None], losses.recycle[None], losses.acceptance])
                rows.append(row * len(batch))
        count = min(len(self.corpus.held_out) // self.options.sequence_length, HELD_OUT_WINDOWS)
        next_token, recycle, *acceptance = (torch.stack(rows).sum(0) / count).tolist()
        seconds = time.perf_counter() - self.started
        return TrainingResult(step, ended, next_token, recycle, tuple(acceptance), seconds)

    def _save(self, result: TrainingResult, *, unfinished: bool) -> None:
        config = self.checkpoint.recycler
        assert config is not None
        earlier: list[Any] = list(config.training.get("runs", []))
        if self.first > 1 and earlier and earlier[-1]["ended"] == "interrupted":
            earlier = earlier[:-1]  # this run's own entry, up to where it was resumed
        runs = [*earlier, {**asdict(self.options), **asdict(result)}]
        config = replace(config, trained_depth=self.options.depth, training={"runs": runs})
        ids = torch.from_numpy(self.corpus.held_out[: storage.REFERENCE_TOKENS].astype(np.int64))
        if unfinished:  # before the module: a training killed between the two goes on from the state alone
            save_state(self.checkpoint.folder, self._state(result))
        with _Unrounded(self.model):
            if self.options.joint:
                storage.save_both(self.checkpoint, self.model, config, ids, self.dtypes)
            else:
                storage.save_recycler(self.checkpoint.folder, self.model, config, ids, self.dtypes[1])
        if not unfinished:
            discard_state(self.checkpoint.folder)
        self.saved = time.perf_counter()

    def _state(self, result: TrainingResult) -> State:
        parameters = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return State(parameters, self.optimizer.state_dict(), result.steps, result.seconds, self._identity())

    def _identity(self) -> dict[str, Any]:
        """What must be the same in a resumed training; the budget may change."""
        names = ("joint", "depth", "batch_size", "sequence_length", "seed", "recycle_weight", "weight_decay")
        return {
            **{name: getattr(self.options, name) for name in names},
            "learning_rate": self.peak,
            "data": f"{len(self.corpus.train)} tokens, {zlib.crc32(self.corpus.train.data):08x}",
        }


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


def _optimizer(model: RecycleGPT, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))

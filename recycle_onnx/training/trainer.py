"""The training loop: updates a checkpoint in place, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from torch import Tensor

from recycle_onnx.training.budget import Budget, Plateau, learning_rate
from recycle_onnx.training.interruption import Interruption
from recycle_onnx.training.log import Log
from recycle_onnx.training.options import Ended, Progress, TrainingOptions, TrainingResult
from recycle_onnx.training.resume import discard_state
from recycle_onnx.training.saving import Saver
from recycle_onnx.training.setup import Setup, set_up
from recycle_onnx.training.stepper import Stepper

HELD_OUT_WINDOWS = 64
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
    killed, last saved. Where `accelerate launch` started several processes each calls this, and they train together:
    the main one alone writes and reports.

    Raises:
        InputError: no module, no text, a base that cannot be changed, or options out of range.
        RecycleError: the loss is not finite, or the disk is full; what was saved before is kept.
    """
    with set_up(folder, data, held_out or [], options, notice) as setup:
        run = _Run(setup)
        if resume:
            run.restore()
        elif setup.processes.is_main:
            discard_state(folder)
        return run.go(report)


class _Run:
    """One training: how far it has gone, when it ends and when it saves. All processes take the same decisions."""

    def __init__(self, setup: Setup) -> None:
        self.options, self.corpus, self.processes = setup.options, setup.corpus, setup.processes
        self.folder = setup.checkpoint.folder
        self.stepper = Stepper(setup)
        self.saver = Saver(setup, self.stepper)
        self.budget = Budget(self.options.steps, self.options.tokens, self.options.minutes)
        self.plateau, self.measured = Plateau(), 0
        self.first, self.spent = 1, 0.0
        self.began = time.perf_counter()
        self.before = self.seconds = self.saved = 0.0

    def restore(self) -> None:
        """Go on where an earlier run saved."""
        state = self.saver.restore()
        self.first = state.step + 1
        self.before = self.seconds = self.saved = state.seconds
        self.spent = self._spent(state.step)
        self.measured = int(self.spent * MEASUREMENTS)

    def go(self, report: Callable[[Progress], None]) -> TrainingResult:
        log = Log(self.folder, self.first) if self.processes.is_main else None
        step, ended = self.first - 1, None
        with Interruption(patient=self.processes.count > 1) as interruption:
            for step, batch in enumerate(self._batches(), start=self.first):
                progress = self._step(step, batch)
                if log:
                    log.add(**asdict(progress))
                    with interruption.noted():
                        report(progress)
                if ended := self._ended(step, interruption):
                    break
                if self.seconds - self.saved > 60 * self.options.save_minutes:
                    self._save(self._result(step, "interrupted"))
            assert ended is not None
            result = self._result(step, ended)
            self._save(result)
        return result

    def _batches(self) -> Iterator[Tensor]:
        options = self.options
        endless = self.corpus.batches(options.batch_size, options.sequence_length, options.seed)
        return islice(endless, self.first - 1, None)

    def _step(self, step: int, batch: Tensor) -> Progress:
        rate = learning_rate(self.stepper.peak, self.spent, step - 1)
        losses = self.stepper.step(step, batch, rate)
        self.seconds = self.processes.agree(self._clock())
        self.spent = self._spent(step)
        speed = self._tokens(step - self.first + 1) / (self.seconds - self.before)
        rates = tuple(losses.acceptance.tolist())
        return Progress(step, self.spent, losses.next_token.item(), losses.recycle.item(), rates, speed, rate)

    def _ended(self, step: int, interruption: Interruption) -> Ended | None:
        if self.spent >= 1:
            return "budget"
        if self.processes.any(interruption.requested):
            return "interrupted"
        if self.budget.is_open and self._has_stopped_rising(step):
            return "plateau"
        return None

    def _has_stopped_rising(self, step: int) -> bool:
        if self.spent * MEASUREMENTS < self.measured + 1:
            return False
        self.measured += 1
        return self.plateau.reached(self._result(step, "plateau").held_out_acceptance[0])

    def _result(self, step: int, ended: Ended) -> TrainingResult:
        windows = self.corpus.held_out_windows(self.options.sequence_length, HELD_OUT_WINDOWS)
        next_token, recycle, *acceptance = self.stepper.measure(windows).row().tolist()
        return TrainingResult(step, ended, next_token, recycle, tuple(acceptance), self._clock())

    def _save(self, result: TrainingResult) -> None:
        if self.processes.is_main:
            self.saver.save(result, unfinished=result.ended == "interrupted")
        self.processes.wait()
        self.saved = self.seconds

    def _clock(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.before + time.perf_counter() - self.began

    def _tokens(self, steps: int) -> int:
        return steps * self.options.batch_size * self.options.sequence_length

    def _spent(self, step: int) -> float:
        return self.budget.progress(step, self._tokens(step), self.seconds)

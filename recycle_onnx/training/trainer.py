"""The training loop: updates a checkpoint in place, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from recycle_onnx.training.best import Best
from recycle_onnx.training.budget import Budget, Plateau, learning_rate
from recycle_onnx.training.data import batches
from recycle_onnx.training.interruption import Interruption
from recycle_onnx.training.log import Log
from recycle_onnx.training.options import Ended, Progress, TrainingOptions, TrainingResult
from recycle_onnx.training.resume import check_state, discard_state
from recycle_onnx.training.saving import Saver
from recycle_onnx.training.setup import Setup, Stage, set_up, silent_stage
from recycle_onnx.training.stepper import Stepper

MEASUREMENTS = 20
"""Of held-out text in a training: the best of them is what it ends with."""


def train(
    folder: Path,
    data: list[Path],
    options: TrainingOptions,
    *,
    held_out: list[Path] | None = None,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    stage: Stage = silent_stage,
    report: Callable[[Progress], None] = lambda _: None,
) -> TrainingResult:
    """Train the module of the checkpoint `folder`, and its base too when `options.joint`.

    Ctrl-C ends the training early and keeps what was learnt; `resume` goes on where such a training, or one that was
    killed, last saved. Where `accelerate launch` started several processes each calls this, and they train together:
    the main one alone writes and reports. With a frozen base the module of the best step is kept: the one that lets a
    full run give most tokens on held-out text. Without `data` the base writes the text itself.

    Raises:
        InputError: no module, no text, a base that cannot be changed, or options out of range.
        RecycleError: the loss is not finite, or the disk is full; what was saved before is kept.
    """
    if resume and folder.is_dir():
        check_state(folder)
    with set_up(folder, data, held_out or [], options, notice, stage) as setup:
        setup.fill_caches(stage)
        run = _Run(setup)
        if resume:
            run.restore()
        elif setup.processes.is_main:
            discard_state(folder)
        return run.go(report)


class _Run:
    """One training: its progress, its end and its saves. All processes take the same decisions."""

    def __init__(self, setup: Setup) -> None:
        self.options, self.processes, self.windows = setup.options, setup.processes, len(setup.train)
        self.folder = setup.checkpoint.folder
        self.stepper = Stepper(setup)
        self.saver = Saver(setup, self.stepper)
        self.budget = Budget(self.options.steps, self.options.tokens, self.options.minutes)
        self.plateau, self.measured = Plateau(), 0
        self.best: Best | None = None
        self.first, self.spent = 1, 0.0
        self.began = time.perf_counter()
        self.before = self.seconds = self.saved = 0.0

    def restore(self) -> None:
        """Continue where an earlier run saved."""
        state = self.saver.restore()
        self.first = state.step + 1
        self.before = self.seconds = self.saved = state.seconds
        self.spent = self._spent(state.step)
        self.measured = int(self.spent * MEASUREMENTS)
        if state.best:
            self.best = Best.from_state(state.best)
            self.plateau.best = self.best.result.tokens_a_run

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
            if self._is_better_before(result):
                result = self._go_back(step, ended)
            self._save(result)
        return result

    def _batches(self) -> Iterator[list[int]]:
        # A resumed training draws the batches of its past too, and leaves them out: its order is that of a whole one.
        endless = batches(self.windows, self.options.batch_size, self.options.seed)
        return islice(endless, self.first - 1, None)

    def _step(self, step: int, batch: list[int]) -> Progress:
        rate = learning_rate(self.stepper.peak, self.spent, step - 1)
        losses = self.stepper.step(step, batch, rate)
        # The main process's clock for all: they must come to the same end in the same step.
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
        if self.spent * MEASUREMENTS >= self.measured + 1 and self._has_stopped_rising(step):
            return "plateau"
        return None

    def _has_stopped_rising(self, step: int) -> bool:
        """Measure, keep the weights where they are the best so far, and say whether an open budget is over."""
        self.measured += 1
        result = self._result(step, "plateau")
        if not self.options.joint and (self.best is None or result.tokens_a_run > self.best.result.tokens_a_run):
            self.best = Best.of(self.stepper.trained, result)
        return self.plateau.reached(result.tokens_a_run) and self.budget.is_open

    def _is_better_before(self, result: TrainingResult) -> bool:
        """Tell whether an earlier step was better; an interrupted training goes on from where it is."""
        return (
            self.best is not None
            and result.ended != "interrupted"
            and self.best.result.tokens_a_run > result.tokens_a_run
        )

    def _go_back(self, step: int, ended: Ended) -> TrainingResult:
        assert self.best is not None
        self.best.restore(self.stepper.trained)
        return replace(self.best.result, steps=step, ended=ended, seconds=self._clock())

    def _result(self, step: int, ended: Ended) -> TrainingResult:
        next_token, recycle, *acceptance = self.stepper.measure().row().tolist()
        return TrainingResult(step, step, ended, next_token, recycle, tuple(acceptance), self._clock())

    def _save(self, result: TrainingResult) -> None:
        if self.processes.is_main:
            self.saver.save(result, self.best, unfinished=result.ended == "interrupted")
        self.processes.wait()
        self.saved = self.seconds

    def _clock(self) -> float:
        """Return the seconds of training, those before an interruption included."""
        return self.before + time.perf_counter() - self.began

    def _tokens(self, steps: int) -> int:
        return steps * self.options.batch_size * self.options.sequence_length

    def _spent(self, step: int) -> float:
        return self.budget.progress(step, self._tokens(step), self.seconds)

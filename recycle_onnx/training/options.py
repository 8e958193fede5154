"""How to train, and what a training tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from recycle_onnx.declaration import declared, setting
from recycle_onnx.errors import InputError
from recycle_onnx.kinds import Choice, Flag, Number, Text
from recycle_onnx.training.budget import Budget

Ended = Literal["budget", "plateau", "interrupted"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["fp32", "bf16"]
LONGEST_CHAIN = 8
"""A chain's step is right only where all before it were: few texts reach the eighth."""
PEAKS: dict[Optimizer, float] = {"adamw": 1e-3, "muon": 3e-2}
"""Peak learning rates for a hidden size of 256; they fall with the root of the size, as the weights themselves do.

Muon's was measured: a module for 135 million parameters (hidden size 576) learnt faster at 2e-2 than at 5e-2, and one
for stories260K (64) at 6e-2 faster than with AdamW at its best rate.
"""
COUNT = Number(least=1, whole=True)
BUDGET = Number(least=0, above=True, whole=True, optional=True)
POSITIVE = Number(least=0, above=True)
WEIGHT = Number(least=0, infinite=True)
OWN_TOKENS = 1_000_000
"""What a base writes where no text is at hand: on two cores half an hour for 135 million parameters."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of a training. At most one of `steps`, `tokens` and `minutes` is the budget (see `Budget`).

    Each process takes its share of a batch. A base that is held in bfloat16 is a frozen one: what is trained stays in
    float32. The options of `recycle-onnx train` are made from these fields.
    """

    field: str = setting("text", Text(), "Where the text is in JSON lines.")
    regenerate: bool = setting(
        False, Flag(),
        "Train on text that the base writes from the documents' beginnings, or as answers to chats (`messages`).",
    )  # fmt: skip
    own_tokens: int | None = setting(
        None, Number(whole=True, optional=True), "Let the base write so many tokens from nothing.",
        unset=f"{OWN_TOKENS:,} without --data, else none",
    )  # fmt: skip
    temperature: float = setting(0.7, POSITIVE, "Of the text that the base writes.")
    joint: bool = setting(
        False, Flag(), "Train the base with the module, or the module alone.",
        unset="the module alone", option="--joint/--freeze-base",
    )  # fmt: skip
    depth: int = setting(
        3, Number(least=1, most=LONGEST_CHAIN, whole=True), "Longest chain of recycled tokens to train."
    )
    steps: int | None = setting(None, BUDGET, "Budget: optimiser steps.")
    tokens: int | None = setting(None, BUDGET, "Budget: tokens of text.")
    minutes: float | None = setting(
        None, Number(least=0, above=True, optional=True), "Budget: wall time.",
        unset="until acceptance stops rising, 15 at most",
    )  # fmt: skip
    batch_size: int = setting(16, COUNT, "Windows of text in a step, over all processes.")
    gradient_accumulation: int = setting(1, COUNT, "Parts of a batch, one after the other: less memory.")
    sequence_length: int = setting(256, Number(least=8, whole=True), "Tokens in a window.")
    learning_rate: float | None = setting(
        None, Number(least=0, most=1, above=True, below=True, optional=True), "Peak learning rate.",
        unset="3e-2 for muon, 1e-3 for adamw, times sqrt(256 / hidden size)", option="--lr",
    )  # fmt: skip
    weight_decay: float = setting(0.01, WEIGHT, "Decay of the module's matrices.")
    clip: float = setting(1.0, POSITIVE, "Largest norm of the gradient.")
    precision: Precision | None = setting(
        None, Choice(get_args(Precision), optional=True),
        "Of the matrix products; bf16 also holds a frozen base in it.",
        unset="bf16 where the device multiplies it and the base is frozen",
    )  # fmt: skip
    optimizer: Optimizer | None = setting(
        None, Choice(get_args(Optimizer), optional=True),
        "For the matrices that are trained; what has one axis is AdamW's in any case.",
        unset="muon; adamw with --joint, which also trains tables of embeddings",
    )  # fmt: skip
    overlap: float = setting(0.0, WEIGHT, "Weight of a loss on what a sampled proposal is refused.")
    draft_vocab: int | None = setting(
        None, Number(whole=True, optional=True),
        "Let the module know so many tokens only: the most frequent ones of the training text.",
        unset="as the checkpoint has it",
    )  # fmt: skip
    cache_gb: float = setting(
        20.0, Number(least=0, infinite=True, notes={0: "no cache"}),
        "Disk for what a frozen base says of the text, so that it reads it once; 0 for none.",
    )  # fmt: skip
    recycle_weight: float = setting(1.0, WEIGHT, "Weight of the recycle loss in joint training.")
    seed: int = setting(0, Number(whole=True), "Seed of the order of the text.")
    save_minutes: float = setting(5.0, WEIGHT, "Save this often while training.")

    @property
    def chosen_optimizer(self) -> Optimizer:
        """The optimizer that was asked for, or the one that suits what is trained."""
        return self.optimizer or ("adamw" if self.joint else "muon")

    def peak(self, hidden_size: int) -> float:
        """Return the highest learning rate: the one asked for, or the optimizer's for this hidden size."""
        return self.learning_rate or PEAKS[self.chosen_optimizer] * math.sqrt(256 / hidden_size)

    def windows_of_budget(self) -> int | None:
        """Count the windows that the budget reads in all; None where it is one of time, or open."""
        if self.steps is not None:
            return self.steps * self.batch_size
        return None if self.tokens is None else math.ceil(self.tokens / self.sequence_length)

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            InputError: names the option.
        """
        Budget(self.steps, self.tokens, self.minutes)
        for name, about in declared(type(self)).items():
            option = about.option.partition("/")[0] or f"--{name}"
            about.kind.own(option, getattr(self, name))
        if self.own_tokens is not None and self.own_tokens < self.sequence_length:
            raise InputError(f"--own-tokens is {self.own_tokens}; expected at least {self.sequence_length}, a window")
        if self.joint and (self.regenerate or self.own_tokens):
            name = "--regenerate" if self.regenerate else "--own-tokens"
            raise InputError(f"{name} is for a frozen base: a base does not learn from its own text")


@dataclass(frozen=True)
class Progress:
    """The state after a step: training losses in nats a token, and how fast it goes.

    `spent` is the part of the budget that is gone, `acceptance` is by place in the chain, `learning_rate` the step's.
    """

    step: int
    spent: float
    next_token: float
    recycle: float
    acceptance: tuple[float, ...]
    tokens_per_second: float
    learning_rate: float


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training, on held-out text (nats a token; acceptance is greedy, by place).

    The module is the one of `best_step`, and so are the measurements.
    Where the base writes its own text to train on, the held-out text is its own too.
    `ended` says why: `budget`, `plateau` (acceptance stopped rising) or `interrupted`.
    """

    steps: int
    best_step: int
    ended: Ended
    held_out_next_token: float
    held_out_recycle: float
    held_out_acceptance: tuple[float, ...]
    seconds: float

    @property
    def tokens_a_run(self) -> float:
        """Tokens that a run of the full model is expected to give with chains of the trained depth, its own included.

        A place of a chain counts where all before it were right.
        """
        return 1.0 + sum(
            math.prod(self.held_out_acceptance[: place + 1]) for place in range(len(self.held_out_acceptance))
        )

"""How to train, and what a training tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from recycle_onnx.errors import InputError
from recycle_onnx.training.budget import Budget

Ended = Literal["budget", "plateau", "interrupted"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["fp32", "bf16"]
LONGEST_CHAIN = 8
PEAKS: dict[Optimizer, float] = {"adamw": 1e-3, "muon": 3e-2}
"""Peak learning rates for a hidden size of 256; they fall with the root of the size, as the weights themselves do.

Muon's was measured: SmolLM2-135M's module (576) learnt fastest at 2e-2, of 1e-2, 2e-2 and 5e-2.
"""
OWN_TOKENS = 1_000_000
"""What a base writes where no text is at hand: on two cores half an hour for 135 million parameters."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, at most one of `steps`, `tokens` and `minutes` (see `Budget`).

    `depth` is the longest chain that is trained, `field` names the text in JSON lines. With `regenerate` the base
    writes the text itself, at `temperature`, from the beginnings of the documents; `own_tokens` is how much it writes
    at least, `OWN_TOKENS` where there are no documents. `learning_rate` None means `PEAKS` of the optimizer ·
    sqrt(256 / hidden size). `batch_size` counts the windows of a step over all processes; each process takes its
    share in `gradient_accumulation` parts, one after the other. With `precision` bf16 matrices are multiplied in
    bfloat16, and a frozen base is held in it; what is trained stays in float32. None takes bf16 for a frozen base
    where the device multiplies it, and fp32 otherwise. What a frozen base says of the text is kept on disk, in a
    cache of `cache_gb` gigabytes at the most. `overlap` weighs a loss on what a sampled proposal is refused
    (`head_loss`). With `draft_vocab` the module knows so many tokens only, the most frequent ones of the training
    text. `optimizer` muon is for matrices; what has one axis is AdamW's in any case. None takes muon for a frozen
    base, and adamw in joint training, which also trains tables of embeddings.
    """

    joint: bool = False
    depth: int = 3
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    sequence_length: int = 256
    learning_rate: float | None = None
    weight_decay: float = 0.01
    recycle_weight: float = 1.0
    seed: int = 0
    save_minutes: float = 5.0
    field: str = "text"
    regenerate: bool = False
    own_tokens: int | None = None
    temperature: float = 0.7
    gradient_accumulation: int = 1
    clip: float = 1.0
    precision: Precision | None = None
    cache_gb: float = 20.0
    overlap: float = 0.0
    draft_vocab: int | None = None
    optimizer: Optimizer | None = None

    @property
    def chosen_optimizer(self) -> Optimizer:
        """The optimizer that was asked for, or the one that suits what is trained."""
        return self.optimizer or ("adamw" if self.joint else "muon")

    def peak(self, hidden_size: int) -> float:
        """The highest learning rate: the one that was asked for, or the optimizer's for this hidden size."""
        return self.learning_rate or PEAKS[self.chosen_optimizer] * math.sqrt(256 / hidden_size)

    def windows_of_budget(self) -> int | None:
        """Windows that the budget reads in all; None where it is one of time, or open."""
        if self.steps is not None:
            return self.steps * self.batch_size
        return None if self.tokens is None else math.ceil(self.tokens / self.sequence_length)

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            InputError: names the option.
        """
        Budget(self.steps, self.tokens, self.minutes)
        if self.batch_size < 1:
            raise InputError(f"--batch-size is {self.batch_size}; expected at least 1")
        if self.gradient_accumulation < 1:
            raise InputError(f"--gradient-accumulation is {self.gradient_accumulation}; expected at least 1")
        if self.clip <= 0:
            raise InputError(f"--clip is {self.clip}; expected more than 0")
        if self.precision is not None and self.precision not in get_args(Precision):
            raise InputError(f"--precision is {self.precision!r}; expected one of: {', '.join(get_args(Precision))}")
        if not 1 <= self.depth <= LONGEST_CHAIN:
            raise InputError(f"--depth is {self.depth}; expected 1 to {LONGEST_CHAIN}")
        if self.sequence_length < 8:
            raise InputError(f"--sequence-length is {self.sequence_length}; expected at least 8")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise InputError(f"--lr is {self.learning_rate}; expected a number between 0 and 1")
        if self.temperature <= 0:
            raise InputError(f"--temperature is {self.temperature}; expected more than 0")
        if self.cache_gb < 0:
            raise InputError(f"--cache-gb is {self.cache_gb}; expected 0 (no cache) or more")
        if self.optimizer is not None and self.optimizer not in get_args(Optimizer):
            raise InputError(f"--optimizer is {self.optimizer!r}; expected one of: {', '.join(get_args(Optimizer))}")
        if self.overlap < 0:
            raise InputError(f"--overlap is {self.overlap}; expected 0 or more")
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
    """What was reached, measured on held-out text (nats a token; acceptance is greedy, by place).

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

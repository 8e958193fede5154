"""What the frozen base says of a text: all that a module's training needs of it, so that it runs over a text once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recycle_onnx.training.model import FullModel
from recycle_onnx.training.precision import computing, precision_of

LIKELIEST = 48
"""Tokens of the base's distribution that are kept; what lies behind them no module of a few layers can tell apart."""
OUTSIDE = -100
"""In the place of tokens that a draft vocabulary lacks."""
ROWS = 256
"""Rows of the base's logits that exist at once."""


@dataclass(frozen=True)
class Targets:
    """The base's predictions on windows of text [N, S]; row p is what it says after the token at p.

    `states` [N, S, n·H] are its hidden states at the module's taps, in the type that the base is computed in. `ids`
    [N, S, K] are its likeliest tokens, the best one first, and `log_probabilities` [N, S, K] theirs, in float16.
    `log_total` [N, S] is what those lack to be logits: the logarithm of the sum over all tokens. `nats` [N, S] is what
    the base pays for the text's own next token; the last row of a window has none, and says 0.
    """

    states: Tensor
    ids: Tensor
    log_probabilities: Tensor
    log_total: Tensor
    nats: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Targets:
        """Copy the targets to a device."""
        return Targets(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @property
    def bytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def __getitem__(self, windows: slice) -> Targets:
        """Return the targets of some windows."""
        return Targets(**{name: tensor[windows] for name, tensor in self.tensors().items()})

    @classmethod
    def joined(cls, parts: Sequence[Targets], dim: int = 0) -> Targets:
        """Join windows of several targets, one behind the other; with `dim` 1 rows of the same windows."""
        return cls(**{name.name: torch.cat([getattr(part, name.name) for part in parts], dim) for name in fields(cls)})

    def of_draft(self, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens' places [N, S, K] in a draft vocabulary, and their probabilities in float32.

        `places` [V] says where each token stands there, `OUTSIDE` for those that it lacks: they get no probability.
        """
        probabilities = self.log_probabilities.float().exp()
        if places is None:
            return self.ids.long(), probabilities
        ids = places[self.ids.long()]
        return ids.clamp(min=0), probabilities.masked_fill(ids == OUTSIDE, 0.0)


@torch.no_grad()
def base_targets(model: FullModel, windows: Tensor) -> Targets:
    """Run the base over `windows` [N, S] of token ids."""
    device = next(model.parameters()).device
    windows = windows.to(device)
    with computing(model, device, precision_of(model)):
        hidden, states = model.hidden(windows)
        targets = targets_of(model, hidden, states, torch.roll(windows, -1, dims=1))
    targets.nats[:, -1] = 0
    return targets


def targets_of(model: FullModel, hidden: Tensor, states: Tensor, following: Tensor) -> Targets:
    """Compute the targets of rows that the base has read.

    `hidden` [N, S, H] is what its LM head reads, `states` are those at the taps, `following` [N, S] the tokens behind
    the rows.
    """
    rows = zip(torch.split(hidden.flatten(0, 1), ROWS), torch.split(following.flatten(), ROWS), strict=True)
    parts = [_of_logits(model.logits(part).float(), tokens) for part, tokens in rows]
    known = {
        name: torch.cat([part[name] for part in parts]).view(*following.shape, *parts[0][name].shape[1:])
        for name in parts[0]
    }
    return _targets(model, states, known)


def targets_of_last(model: FullModel, logits: Tensor, states: Tensor, following: Tensor) -> Targets:
    """Compute the targets of the row [N, 1] that gave `logits` [N, V], with its states [N, 1, n·H] at the taps."""
    return _targets(model, states, {name: rows[:, None] for name, rows in _of_logits(logits, following).items()})


def _targets(model: FullModel, states: Tensor, known: dict[str, Tensor]) -> Targets:
    """Convert targets to the types they are kept in; autocast refuses to join float16 tensors, so this comes last."""
    half = known["log_probabilities"].half()
    return Targets(states.to(next(model.parameters()).dtype), **{**known, "log_probabilities": half})


def _of_logits(logits: Tensor, following: Tensor) -> dict[str, Tensor]:
    """Compute everything but the states from rows of `logits` [rows, V]."""
    values, ids = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    # torch's logsumexp is three times as slow as its log_softmax
    total = values[:, 0] - logits.log_softmax(-1).gather(-1, ids[:, :1])[:, 0]
    return {
        "ids": ids.int(),
        "log_probabilities": values - total[:, None],
        "log_total": total,
        "nats": total - logits.gather(-1, following[:, None])[:, 0],
    }

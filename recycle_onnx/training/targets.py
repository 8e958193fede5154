"""What the frozen base says of a text: all that a module's training needs of it, so that it runs over a text once."""

from __future__ import annotations

from collections.abc import Iterator
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
    """The base on windows of text [N, S]; row p is what it says after the token at p.

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
        """All of it by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @classmethod
    def joined(cls, parts: list[Targets]) -> Targets:
        """Windows of several, one behind the other."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def of_draft(self, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places [N, S, K] in a draft vocabulary of the likeliest tokens, and their probabilities in float32.

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
        following = torch.roll(windows, -1, dims=1).flatten()
        parts = list(_of_rows(model, hidden.flatten(0, 1), following))
    known = {
        name: torch.cat([part[name] for part in parts]).view(*windows.shape, *parts[0][name].shape[1:])
        for name in parts[0]
    }
    known["nats"][:, -1] = 0
    return Targets(states.to(next(model.parameters()).dtype), **known)


def _of_rows(model: FullModel, hidden: Tensor, following: Tensor) -> Iterator[dict[str, Tensor]]:
    for rows, tokens in zip(torch.split(hidden, ROWS), torch.split(following, ROWS), strict=True):
        logits = model.logits(rows).float()
        values, ids = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
        # torch's logsumexp is three times as slow as its log_softmax
        total = values[:, 0] - logits.log_softmax(-1).gather(-1, ids[:, :1])[:, 0]
        yield {
            "ids": ids.int(),
            "log_probabilities": (values - total[:, None]).half(),
            "log_total": total,
            "nats": total - logits.gather(-1, tokens[:, None])[:, 0],
        }

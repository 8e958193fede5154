"""The reference of a base with its head: transformers' base, and the head's steps over the whole text each time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.reference.heads import Reference, transformers_base


class BaseAndHead:
    """Logits over a text, and chains."""

    def __init__(self, base: Path, head: Reference) -> None:
        self.base, self.head = transformers_base(base), head
        self.draft = getattr(head, "draft", None)

    @torch.no_grad()
    def states(self, ids: list[int]) -> Tensor:
        """What the head makes of the base's hidden states [1, S, H]."""
        before: list[Tensor] = []
        handle = self.base.model.norm.register_forward_pre_hook(lambda _, read: before.append(read[0]))
        streams = self.base(torch.tensor([ids]), output_hidden_states=True).hidden_states
        handle.remove()
        return self.head.states([*streams[:-1], before[0]], streams[-1])

    @torch.no_grad()
    def step(self, ids: list[int], hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [1, S, Vd] and states of the next step, for tokens at p+1 and hidden states at p."""
        table = getattr(self.head, "embed_tokens", self.base.get_input_embeddings())
        read, own = self.head.step(table(torch.tensor([ids])), hidden)
        if not self.head.recurrent and self.head.own_head:
            return self.head.heads[0](read), own
        if hasattr(self.head, "lm_head"):
            return self.head.lm_head(read), own
        logits = self.base.lm_head(read)
        return (logits if self.draft is None else logits[..., self.draft]), own

    @torch.no_grad()
    def places(self, tokens: list[int], count: int) -> tuple[list[int], list[Tensor]]:
        """The same of a head that reads the hidden state alone: a row for each place that it has."""
        hidden, rows = self.states(tokens[:-1])[:, -1], []
        for place in range(min(count, self.head.count)):
            lm_head = self.head.heads[place] if self.head.own_head else self.base.lm_head
            rows.append(lm_head(self.head.place(place, hidden))[0])
        return [int(row.argmax()) for row in rows], rows

    def chain(self, tokens: list[int], count: int) -> tuple[list[int], list[Tensor]]:
        """Greedy tokens after `tokens`, and the logits that they were chosen from."""
        if not self.head.recurrent:
            return self.places(tokens, count)
        hidden, known, rows = self.states(tokens[:-1]), list(tokens), []
        for _ in range(count):
            logits, own = self.step(known[1:], hidden)
            rows.append(logits[0, -1])
            best = int(logits[0, -1].argmax())
            known.append(best if self.draft is None else int(self.draft[best]))
            hidden = torch.cat([hidden, own[:, -1:]], dim=1)
        return known[len(tokens) :], rows

"""Decoding in plain torch: every token from a run over the whole text, no cache, no batching of tokens."""

from __future__ import annotations

import torch

from recycle_onnx.training.model import RecycleGPT


@torch.no_grad()
def full(model: RecycleGPT, prompt: list[int], count: int, stops: frozenset[int] = frozenset()) -> list[int]:
    """`count` greedy tokens of the base."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(model.full(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


@torch.no_grad()
def alternate(model: RecycleGPT, prompt: list[int], count: int, stops: frozenset[int] = frozenset()) -> list[int]:
    """`count` greedy tokens, by turns from the base and from the module."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        output = model.full(torch.tensor([tokens]))
        tokens.append(int(output.logits[0, -1].argmax()))
        if tokens[-1] in stops or len(tokens) == len(prompt) + count:
            break
        recycled = model.recycle(torch.tensor([tokens[1:]]), output.hidden_states)
        tokens.append(int(model.chosen(recycled)[0, -1]))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


@torch.no_grad()
def chain(model: RecycleGPT, tokens: list[int], count: int) -> list[int]:
    """`count` greedy tokens of the module after `tokens`: the first from true hidden states, then from its own."""
    hidden = model.full(torch.tensor([tokens[:-1]])).hidden_states
    known = list(tokens)
    for _ in range(count):
        output = model.recycle(torch.tensor([known[1:]]), hidden)
        known.append(int(model.chosen(output)[0, -1]))
        hidden = torch.cat([hidden, output.hidden_states[:, -1:]], dim=1)
    return known[len(tokens) :]

"""Scaled dot-product attention of grouped queries (arXiv 2305.13245) over a cache, a text or the steps of a chain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recycle_onnx.training.caches import Chain

FEW_ROWS = 4
"""Up to so many query rows plain products are faster on a CPU than torch's fused attention: four times for one row."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    chain: Chain,
    *,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Attend with queries [B, heads, S, D] to keys and values [B, KV heads, T, D], and each row to its own `chain`.

    `mask` [S, T] says which keys a row may see; without it a row sees the keys up to its own number. Scores are
    multiplied by `scale`, and bounded by `cap`: cap · tanh(score / cap) (arXiv 2408.00118).
    """
    if cap is None and not chain and query.shape[2] > FEW_ROWS:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    batch, heads, rows, size = query.shape
    # all queries of a KV head in one product, so that keys and values are read once for them
    grouped = (query * scale).reshape(batch, key.shape[1], heads // key.shape[1], rows, size)
    scores = _capped((grouped.flatten(2, 3) @ key.transpose(2, 3)).view(*grouped.shape[:-1], -1), cap)
    scores = scores.masked_fill(~mask, float("-inf"))
    own = [_capped((grouped * step.unsqueeze(2)).sum(-1, keepdim=True), cap) for step, _ in chain]
    weights = torch.cat([scores, *own], dim=-1).softmax(-1, dtype=torch.float32).to(value.dtype)
    read: Tensor = (weights[..., : key.shape[2]].flatten(2, 3) @ value).view(grouped.shape)
    for number, (_, step) in enumerate(chain, start=key.shape[2]):
        read = read + weights[..., number : number + 1] * step.unsqueeze(2)
    return read.flatten(1, 2)


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else cap * torch.tanh(scores / cap)

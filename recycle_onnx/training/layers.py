"""The parts of a decoder in torch: norm, rotary embedding, attention, feed-forward, layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.training.caches import Cache, Past


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.to(self.weight.dtype), (x.shape[-1],), self.weight, self.eps)


class Rotary(nn.Module):
    """Rotary position embedding in Llama's half-split layout (arXiv 2104.09864)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        positions = torch.arange(config.context_length, dtype=torch.float64)
        angles = torch.outer(positions, config.rope_theta**-exponents)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Rotate x [B, heads, S, D], whose first row sits at position `start`."""
        stop = start + x.shape[2]
        cos, sin = self.cos[start:stop], self.sin[start:stop]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.config = config
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, cache: Past | None) -> Tensor:
        start = cache.start if cache is not None else 0
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotary(query, start), rotary(key, start)
        mask = None
        if cache is not None:
            key, value = cache.extend(key, value)
            mask = cache.mask(x.shape[1], x.device)
        y = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Gated SiLU (arXiv 2002.05202)."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rotary: Rotary, cache: Past | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


def run_layers(layers: nn.ModuleList, x: Tensor, rotary: Rotary, cache: Cache | None) -> Tensor:
    """x [B, S, H] through all layers."""
    for index, layer in enumerate(layers):
        x = layer(x, rotary, cache[index] if cache is not None else None)
    return x

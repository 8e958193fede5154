"""The parts of a decoder in torch: norms, rotary embeddings, attention, feed-forward, layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recycle_onnx.checkpoint.base import BaseConfig, Layer, Norm, Rope
from recycle_onnx.training.attention import attend
from recycle_onnx.training.caches import Cache, Past

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}
"""By the description's names; the exporter builds the same from ONNX's operators."""


class RMSNorm(nn.Module):
    """A norm: x / rms(x) · weight over the last axis (arXiv 1910.07467); with `plus_one` · (1 + weight)."""

    def __init__(self, size: int, eps: float, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if plus_one else torch.ones(size))
        self.eps, self.plus_one = eps, plus_one

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1 if self.plus_one else self.weight
        return functional.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, self.eps)


def new_norm(size: int, norm: Norm) -> nn.Module:
    """Make a norm of the base's kind."""
    if norm.kind == "rms":
        return RMSNorm(size, norm.eps, norm.plus_one)
    return nn.LayerNorm(size, norm.eps, bias=norm.bias)


class Rotary(nn.Module):
    """Rotary position embeddings (arXiv 2104.09864): the tables of all that a base's layers use."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self._numbers = {rope: number for number, rope in enumerate(config.ropes())}
        positions = np.arange(config.context_length)
        for rope, number in self._numbers.items():
            angles = torch.from_numpy(np.outer(positions, rope.frequencies))
            self.register_buffer(f"cos{number}", (rope.factor * angles.cos()).float(), persistent=False)
            self.register_buffer(f"sin{number}", (rope.factor * angles.sin()).float(), persistent=False)

    def forward(self, x: Tensor, start: int, rope: Rope) -> Tensor:
        """Rotate x [B, heads, S, D], whose first row sits at position `start`."""
        number, stop = self._numbers[rope], start + x.shape[2]
        cos, sin = (self.get_buffer(f"{name}{number}")[start:stop] for name in ("cos", "sin"))
        turned, rest = x[..., : 2 * len(rope.frequencies)], x[..., 2 * len(rope.frequencies) :]
        axis, shape = (-1, (-1, 2)) if rope.interleaved else (-2, (2, -1))
        first, second = turned.reshape(*turned.shape[:-1], *shape).unbind(axis)
        pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=axis)
        return torch.cat([pairs.flatten(-2).to(x.dtype), rest], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: BaseConfig, layer: Layer, width: int | None = None) -> None:
        """Make the matrices; `width` is that of what is read, where it is not the hidden size."""
        super().__init__()
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        width = width or config.hidden_size
        self.config, self.layer = config, layer
        self.q_proj = nn.Linear(width, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.output_bias)
        if config.qk_norm:
            whole = config.qk_norm == "width"
            self.q_norm = new_norm(queries if whole else config.head_dim, config.norm)
            self.k_norm = new_norm(keys if whole else config.head_dim, config.norm)

    def forward(self, x: Tensor, rotary: Rotary, cache: Past | None) -> Tensor:
        start = cache.start if cache is not None else 0
        query, key, value = self._project(x)
        if self.layer.rope is not None:
            query, key = rotary(query, start, self.layer.rope), rotary(key, start, self.layer.rope)
        if self.config.qk_norm == "rotated_head":
            query, key = self.q_norm(query), self.k_norm(key)
        if cache is not None:
            key, value = cache.extend(key, value)
        chain = cache.chain(self.layer.window) if cache is not None else []
        y = attend(
            query, key, value, self._mask(x, cache), chain, scale=self.layer.scale, cap=self.config.attention_softcap
        )
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values [B, heads, S, D], the first two normalised where the base does so first."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.config.qk_norm == "width":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (y.unflatten(-1, (-1, self.config.head_dim)) for y in (query, key, value))
        if self.config.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _mask(self, x: Tensor, cache: Past | None) -> Tensor | None:
        """Return which keys each row may see, bool [rows, keys]; None where causality says it all."""
        rows = x.shape[1]
        mask = cache.mask(rows, x.device) if cache is not None else None
        if self.layer.window is None:
            return mask
        places = torch.arange(rows, device=x.device)
        distance = cache.distances(rows, x.device) if cache is not None else places[:, None] - places
        return (distance < self.layer.window) & (distance >= 0 if mask is None else mask)


class FeedForward(nn.Module):
    """Two layers with an activation between; where it is gated, times a third (arXiv 2002.05202)."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.feed_forward_bias
        self.gated, self.activation = config.gated, ACTIVATIONS[config.activation]
        if config.gated:
            self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.activation(self.up_proj(x))
        y: Tensor = self.down_proj(inner)
        return y


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each added to the residual stream, with norms where the base has them."""

    def __init__(self, config: BaseConfig, layer: Layer, reads: int | None = None) -> None:
        """Make a layer; where `reads` is a width, its attention reads states of that width that are handed in."""
        super().__init__()
        size = config.hidden_size
        before, behind = config.placement != "post", config.placement in ("post", "both")
        self.parallel, self.scale = config.placement == "parallel", config.residual_scale
        self.input_layernorm = new_norm(size, config.norm) if before and reads is None else nn.Identity()
        self.self_attn = Attention(config, layer, reads)
        self.attention_output_norm = new_norm(size, config.norm) if behind else nn.Identity()
        self.post_attention_layernorm = new_norm(size, config.norm) if before else nn.Identity()
        self.mlp = FeedForward(config)
        self.feed_forward_output_norm = new_norm(size, config.norm) if behind else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary, cache: Past | None, attention_input: Tensor | None = None) -> Tensor:
        """Add to the residual stream x [B, S, H]; `attention_input` is what attention reads in place of it."""
        attention_input = self.input_layernorm(x) if attention_input is None else attention_input
        attended = x + self.scale * self.attention_output_norm(self.self_attn(attention_input, rotary, cache))
        read = x if self.parallel else attended
        y: Tensor = attended + self.scale * self.feed_forward_output_norm(self.mlp(self.post_attention_layernorm(read)))
        return y


def run_layers(
    layers: nn.ModuleList,
    x: Tensor,
    rotary: Rotary,
    cache: Cache | None,
    keep: Collection[int] = (),
    first_input: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run x [B, S, H] through all layers; return it, and the residual stream after the layers in `keep`.

    `first_input` is what the first layer's attention reads in place of x, normalised.
    """
    kept = {}
    for index, layer in enumerate(layers):
        x = layer(x, rotary, cache[index] if cache is not None else None, None if index else first_input)
        if index + 1 in keep:
            kept[index + 1] = x
    return x, kept

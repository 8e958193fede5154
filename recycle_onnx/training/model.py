"""RecycleGPT in plain torch: the reference that the exported graphs are checked against.

The full model carries the tensor names of a Hugging Face Llama, so that its state dict is the base's file.
Source of the module: RecycleGPT, arXiv 2308.03421.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig


class Past(Protocol):
    """What a layer's attention sees besides its own rows."""

    @property
    def start(self) -> int:
        """Position of the first row."""
        ...

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows [B, K, S, D]; give all rows so far."""
        ...

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Which keys the latest `rows` may see, bool [rows, keys]; None where causality says it all."""
        ...


class LayerCache:
    """Keys and values [B, K, capacity, D] of one layer, filled from the front."""

    def __init__(self, config: BaseConfig, batch: int, capacity: int) -> None:
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.length = 0

    @property
    def start(self) -> int:
        """Position of the next row."""
        return self.length

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows [B, K, S, D]; give all rows so far."""
        stop = self.length + key.shape[2]
        self.keys[:, :, self.length : stop] = key
        self.values[:, :, self.length : stop] = value
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """Causal; `extend` has counted the rows already."""
        if self.length == rows:
            return None
        return torch.ones(rows, self.length, dtype=torch.bool, device=device).tril(self.length - rows)


class Unrolled:
    """Keys and values of one layer in training, of all rows at once, through the steps of a chain.

    Step 1 reads true hidden states, step k the states of step k-1, one position later. As in decoding, a row of step
    k sees the true rows before its chain, and of the later steps its own chain only (EAGLE-3 trains the same way,
    arXiv 2503.01840).
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def start(self) -> int:
        """Step k begins at position k - 1."""
        return len(self.keys)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a step; give the rows of all steps, one after the other."""
        self.keys.append(key)
        self.values.append(value)
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)

    def mask(self, rows: int, device: torch.device) -> Tensor | None:
        """True rows up to the chain's beginning, and of each later step the chain's own row."""
        step = len(self.keys)
        if step == 1:
            return None
        query = torch.arange(step - 1, step - 1 + rows, device=device)[:, None]
        parts = []
        for index, key in enumerate(self.keys):
            position = torch.arange(index, index + key.shape[2], device=device)[None]
            parts.append(position <= query - (step - 1) if index == 0 else position == query - (step - 1 - index))
        return torch.cat(parts, dim=1)


Cache = Sequence[Past]


def new_cache(config: BaseConfig, num_layers: int, batch: int, capacity: int) -> list[LayerCache]:
    """An empty cache for `num_layers` layers."""
    return [LayerCache(config, batch, capacity) for _ in range(num_layers)]


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


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


class Output(NamedTuple):
    """What a half gives: logits [B, S, V], and hidden states [B, S, H] after the final norm."""

    logits: Tensor
    hidden_states: Tensor


def _run(layers: nn.ModuleList, x: Tensor, rotary: Rotary, cache: Cache | None) -> Tensor:
    for index, layer in enumerate(layers):
        x = layer(x, rotary, cache[index] if cache is not None else None)
    return x


class _Trunk(nn.Module):
    """The part that Hugging Face calls `model`."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class FullModel(nn.Module):
    """The base: an ordinary Llama decoder."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = Rotary(config)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Output:
        """Predict the token after each of `ids` [B, S]."""
        hidden = self.model.norm(_run(self.model.layers, self.model.embed_tokens(ids), self.rotary, cache))
        return Output(self.lm_head(hidden), hidden)

    def initialise(self, seed: int) -> None:
        """Draw fresh weights: normal with deviation 0.02, residual outputs scaled down by depth (GPT-2's way)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                deviation = 0.02 / (2 * self.config.num_layers) ** 0.5 if residual else 0.02
                nn.init.normal_(parameter, 0.0, deviation, generator=generator)


class Recycler(nn.Module):
    """The recyclable module: the hidden state at p and the token at p+1 in, the token at p+2 out."""

    def __init__(self, config: RecyclerConfig, base: BaseConfig) -> None:
        super().__init__()
        size = base.hidden_size
        self.config = config
        self.embedding_norm = RMSNorm(size, base.rms_norm_eps)
        self.hidden_norm = RMSNorm(size, base.rms_norm_eps)
        self.projection = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(base) for _ in range(config.num_layers))
        self.norm = RMSNorm(size, base.rms_norm_eps)

    def forward(self, embedding: Tensor, hidden: Tensor, rotary: Rotary, cache: Cache | None = None) -> Tensor:
        """Embeddings of the tokens at p+1 and hidden states at p, both [B, S, H], to its own states [B, S, H]."""
        x = self.projection(torch.cat([self.embedding_norm(embedding), self.hidden_norm(hidden)], dim=-1))
        states: Tensor = self.norm(_run(self.layers, x, rotary, cache))
        return states


class RecycleGPT(nn.Module):
    """Both halves. Row p of the module lies at position p, so it shares the full model's rotary tables."""

    def __init__(self, base: BaseConfig, recycler: RecyclerConfig) -> None:
        super().__init__()
        self.full = FullModel(base)
        self.recycler = Recycler(recycler, base)

    def recycle(self, ids: Tensor, hidden: Tensor, cache: Cache | None = None) -> Output:
        """Predict the token after each of `ids` [B, S] (at p+1) from `hidden` [B, S, H] (at p)."""
        embedding = self.full.model.embed_tokens(ids)
        states = self.recycler(embedding, hidden, self.full.rotary, cache)
        return Output(self.full.lm_head(states), states)

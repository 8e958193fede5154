"""RecycleGPT in plain torch: the reference that the exported graphs are checked against.

The full model carries the neutral tensor names of `checkpoint/base.py`.
Source of the module: RecycleGPT, arXiv 2308.03421.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig
from recycle_onnx.training.caches import Cache
from recycle_onnx.training.layers import DecoderLayer, RMSNorm, Rotary, new_norm, run_layers


class Output(NamedTuple):
    """What a half gives: logits [B, S, V], and hidden states [B, S, H] after the final norm."""

    logits: Tensor
    hidden_states: Tensor


class _Trunk(nn.Module):
    """The part that Hugging Face calls `model`."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_offset is not None:
            rows = config.context_length + config.position_offset
            self.embed_positions = nn.Embedding(rows, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in config.layers)
        self.norm = new_norm(config.hidden_size, config.norm)


class FullModel(nn.Module):
    """The base: an ordinary decoder."""

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
        x = run_layers(self.model.layers, self.embed(ids, cache), self.rotary, cache)
        hidden = self.model.norm(x)
        return Output(self.head(hidden), hidden)

    def embed(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """What the first layer reads for `ids` [B, S] in rows that follow the cache's."""
        x: Tensor = self.model.embed_tokens(ids) * self.config.embedding_scale
        if self.config.position_offset is None:
            return x
        first = self.config.position_offset + (cache[0].start if cache else 0)
        places = torch.arange(first, first + ids.shape[1], device=ids.device)
        learned: Tensor = self.model.embed_positions(places)
        return x + learned

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B, S, V] of hidden states after the final norm."""
        logits: Tensor = self.lm_head(hidden * self.config.logit_scale)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def initialise(self, seed: int) -> None:
        """Draw fresh weights: normal with deviation 0.02, residual outputs scaled down by depth."""
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
        self.embedding_norm = RMSNorm(size, base.norm.eps)
        self.hidden_norm = RMSNorm(size, base.norm.eps)
        self.projection = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(base, layer) for layer in base.last(config.num_layers).layers)
        self.norm = new_norm(size, base.norm)

    def forward(self, embedding: Tensor, hidden: Tensor, rotary: Rotary, cache: Cache | None = None) -> Tensor:
        """Embeddings of the tokens at p+1 and hidden states at p, both [B, S, H], to its own states [B, S, H]."""
        x = self.projection(torch.cat([self.embedding_norm(embedding), self.hidden_norm(hidden)], dim=-1))
        states: Tensor = self.norm(run_layers(self.layers, x, rotary, cache))
        return states


class RecycleGPT(nn.Module):
    """Both halves. Row p of the module lies at position p, so it shares the full model's rotary tables."""

    def __init__(self, base: BaseConfig, recycler: RecyclerConfig) -> None:
        super().__init__()
        self.full = FullModel(base)
        self.recycler = Recycler(recycler, base)

    def recycle(self, ids: Tensor, hidden: Tensor, cache: Cache | None = None) -> Output:
        """Predict the token after each of `ids` [B, S] (at p+1) from `hidden` [B, S, H] (at p)."""
        embedding = self.full.embed(ids, cache)
        states = self.recycler(embedding, hidden, self.full.rotary, cache)
        return Output(self.full.head(states), states)

"""RecycleGPT in plain torch: the reference that the exported graphs are checked against.

The full model carries the neutral tensor names of `checkpoint/base.py`.
Source of the module: RecycleGPT, arXiv 2308.03421.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from recycle_onnx.checkpoint import BaseConfig, RecyclerConfig
from recycle_onnx.checkpoint.taps import FINAL_PRE, LAYER, layer_of
from recycle_onnx.contract import FINAL_POST
from recycle_onnx.training.caches import Cache
from recycle_onnx.training.layers import DecoderLayer, RMSNorm, Rotary, new_norm, run_layers


class Output(NamedTuple):
    """A half's output: logits [B, S, V], and hidden states [B, S, n·H] as the module reads them, one a tap."""

    logits: Tensor
    hidden_states: Tensor


class _Trunk(nn.Module):
    """The embeddings, layers and final norm of a base, which Hugging Face calls `model`."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_offset is not None:
            rows = config.context_length + config.position_offset
            self.embed_positions = nn.Embedding(rows, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in config.layers)
        self.norm = new_norm(config.hidden_size, config.norm)


class FullModel(nn.Module):
    """The base: an ordinary decoder, whose hidden states are taken at `taps`."""

    def __init__(self, config: BaseConfig, taps: tuple[str, ...] = (FINAL_POST,)) -> None:
        super().__init__()
        self.config, self.taps = config, taps
        self.model = _Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = Rotary(config)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Output:
        """Predict the token after each of `ids` [B, S]."""
        hidden, states = self.hidden(ids, cache)
        return Output(self.logits(hidden), states)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """Compute hidden states of `ids` [B, S]: after the final norm [B, S, H], and at the taps [B, S, n·H]."""
        inner = [layer_of(tap) for tap in self.taps]
        x, kept = run_layers(self.model.layers, self.embed(ids, cache), self.rotary, cache, inner)
        hidden: Tensor = self.model.norm(x)
        by_tap = {FINAL_PRE: x, FINAL_POST: hidden, **{f"{LAYER}{number}": stream for number, stream in kept.items()}}
        states = [by_tap[tap] for tap in self.taps]
        return hidden, torch.cat(states, dim=-1) if len(states) > 1 else states[0]

    def embed(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """Return what the first layer reads for `ids` [B, S] in rows that follow the cache's."""
        x: Tensor = self.model.embed_tokens(ids) * self.config.embedding_scale
        if self.config.position_offset is None:
            return x
        first = self.config.position_offset + (cache[0].start if cache else 0)
        places = torch.arange(first, first + ids.shape[1], device=ids.device)
        learned: Tensor = self.model.embed_positions(places)
        return x + learned

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute logits of hidden states [B, S, H] after a final norm, of the tokens `rows` only if there are any."""
        hidden = hidden * self.config.logit_scale
        head = self.lm_head.weight
        logits = self.lm_head(hidden) if rows is None else functional.linear(hidden, head[rows].to(hidden.dtype))
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
        norms = [RMSNorm(size, base.norm.eps) for _ in config.tap]
        self.hidden_norm = norms[0] if len(norms) == 1 else nn.ModuleList(norms)
        self.projection = nn.Linear((1 + len(norms)) * size, size, bias=False)
        own = config.layers_of(base)
        self.layers = nn.ModuleList(DecoderLayer(own, layer) for layer in own.layers)
        self.norm = new_norm(size, base.norm)

    def forward(
        self, embedding: Tensor, hidden: Tensor, rotary: Rotary, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute two states from embeddings at p+1 [B, S, H] and hidden states at p [B, S, n·H].

        The one after the final norm [B, S, H] is for the LM head, the other is in the form of `hidden`, for a chain.
        """
        parts = {"embedding": self.embedding_norm(embedding), "hidden_state": self._normalised(hidden)}
        x = self.projection(torch.cat([parts[name] for name in self.config.concat], dim=-1))
        x, _ = run_layers(self.layers, x, rotary, cache)
        states: Tensor = self.norm(x)
        own = states if self.config.recycle == "post_norm" else x
        taps = len(self.config.tap)
        return states, own if taps == 1 else own.repeat(1, 1, taps)

    def _normalised(self, hidden: Tensor) -> Tensor:
        """Normalise each tap by its own norm."""
        if not isinstance(self.hidden_norm, nn.ModuleList):
            return self.hidden_norm(hidden)  # type: ignore[no-any-return]
        taps = hidden.chunk(len(self.hidden_norm), dim=-1)
        return torch.cat([norm(tap) for norm, tap in zip(self.hidden_norm, taps, strict=True)], dim=-1)


class RecycleGPT(nn.Module):
    """Both halves in torch.

    Row p of the module lies at position p, so it shares the full model's rotary tables.
    """

    draft_ids: Tensor | None

    def __init__(self, base: BaseConfig, recycler: RecyclerConfig, draft_ids: Sequence[int] | None = None) -> None:
        """Build both halves; `draft_ids` are the tokens that the module has logits for, ascending, by default all."""
        super().__init__()
        self.full = FullModel(base, recycler.tap)
        self.recycler = Recycler(recycler, base)
        self.register_buffer("draft_ids", None if draft_ids is None else torch.tensor(draft_ids), persistent=False)

    def recycle(self, ids: Tensor, hidden: Tensor, cache: Cache | None = None, *, every_token: bool = False) -> Output:
        """Predict the token after each of `ids` [B, S] (at p+1) from `hidden` [B, S, n·H] (at p).

        The logits are [B, S, draft vocabulary], of the whole vocabulary with `every_token`.
        """
        states, own = self.recycled_states(ids, hidden, cache)
        return Output(self.full.logits(states, None if every_token else self.draft_ids), own)

    def recycled_states(self, ids: Tensor, hidden: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """Return the module's states for the LM head [B, S, H], and those that a chain goes on from [B, S, n·H]."""
        own: tuple[Tensor, Tensor] = self.recycler(self.full.embed(ids, cache), hidden, self.full.rotary, cache)
        return own

    def chosen(self, output: Output) -> Tensor:
        """Return the token ids [B, S] to which the module gives most probability."""
        best = output.logits.argmax(-1)
        return best if self.draft_ids is None else self.draft_ids[best]

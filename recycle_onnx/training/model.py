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
from recycle_onnx.checkpoint.recycler import ATTENTION, PROJECTION
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


class PlaceHead(nn.Module):
    """What proposes one token of a chain from the hidden state alone: residual blocks, and perhaps an LM head."""

    def __init__(self, config: RecyclerConfig, base: BaseConfig) -> None:
        super().__init__()
        size = base.hidden_size
        blocks = (nn.Linear(size, size, bias=config.projection_bias) for _ in range(config.blocks))
        self.projection = nn.ModuleList(blocks)
        if config.lm_head == "own":
            self.lm_head = _own_head(config, base)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the LM head reads [B, S, H]."""
        for projection in self.projection:
            hidden = hidden + functional.silu(projection(hidden))
        return hidden


class Recycler(nn.Module):
    """The recyclable module: the hidden state at p and the token at p+1 in, the token at p+2 out."""

    def __init__(self, config: RecyclerConfig, base: BaseConfig) -> None:
        super().__init__()
        size = base.hidden_size
        own = config.layers_of(base)
        self.config, self.base_taps = config, len(config.tap) * size
        self.rotary = None if config.layer_config is None else Rotary(own)
        if config.join is None:
            self.layers = nn.ModuleList()
            self.places = nn.ModuleList(PlaceHead(config, base) for _ in range(config.places))
            return
        width = (1 + len(config.states)) * size
        self.embedding_norm = _norms(["embedding"] if "embedding" in config.norms_before_projection else [], size, own)
        self.hidden_norm = _norms(config.hidden_norms(), size, own)
        if config.fusion:
            norms = config.fusion_norms()
            self.fusion_norm = _norms(norms, self.base_taps if len(norms) == 1 else size, own)
            self.fusion_projection = nn.Linear(self.base_taps, size, bias=False)
        if config.join == PROJECTION:
            self.projection = nn.Linear(width, size, bias=config.projection_bias)
        first = (width if config.join == ATTENTION else size) if config.reads_directly else None
        self.layers = nn.ModuleList(
            DecoderLayer(own, layer, None if index else first) for index, layer in enumerate(own.layers)
        )
        self.norm = new_norm(size, own.norm) if config.final_norm else nn.Identity()
        # tables of its own stay as they are, as those of the base do
        if config.embedding == "own":
            self.embed_tokens = nn.Embedding(base.vocab_size, size).requires_grad_(False)
        if config.lm_head == "own":
            self.lm_head = _own_head(config, base)

    def head(self, place: int = 0) -> nn.Linear:
        """Return the LM head of the module's own, of a place in a chain where each has one."""
        owner: nn.Module = self if self.config.join is not None else self.places[place]
        return owner.get_submodule("lm_head")  # type: ignore[return-value]

    def forward(
        self, embedding: Tensor, hidden: Tensor, rotary: Rotary, cache: Cache | None = None, place: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Compute two states from embeddings at p+1 [B, S, H] and hidden states at p [B, S, n·H].

        The one after the final norm [B, S, H] is for the LM head, the other is in the form of `hidden`, for a chain.
        (Of a module that fuses taps it is [B, S, H]: what has that width is not fused again.) Where each `place` of a
        chain has its own blocks, these read the same hidden states again, whatever the embeddings.
        """
        config = self.config
        if config.join is None:
            return self.places[place](hidden), hidden
        if config.fusion and hidden.shape[-1] == self.base_taps:
            hidden = self.fuse(hidden)
        normed = _normalised(self.hidden_norm, hidden)
        parts = {"embedding": _normalised(self.embedding_norm, embedding), "hidden_state": normed}
        joined = torch.cat([parts[name] for name in config.concat], dim=-1)
        if config.join == ATTENTION:
            stream: Tensor = normed if config.residual == "normed_hidden_state" else hidden
            first: Tensor | None = joined
        else:
            stream = self.projection(joined)
            first = None if config.first_norm else stream
        x, _ = run_layers(self.layers, stream, self.rotary or rotary, cache, first_input=first)
        states: Tensor = self.norm(x)
        own = states if config.recycle == "post_norm" else x
        taps = len(config.states)
        return states, own if taps == 1 else own.repeat(1, 1, taps)

    def fuse(self, taps: Tensor) -> Tensor:
        """Make one hidden state [B, S, H] of the base's taps [B, S, n·H]."""
        fused: Tensor = self.fusion_projection(_normalised(self.fusion_norm, taps))
        return fused


def _own_head(config: RecyclerConfig, base: BaseConfig) -> nn.Linear:
    return nn.Linear(base.hidden_size, config.proposes(base), bias=False).requires_grad_(False)


def _norms(names: Sequence[str], size: int, layers: BaseConfig) -> nn.Module:
    """Make a norm for each name, over parts of `size` side by side; nothing where there are none."""
    norms = [RMSNorm(size, layers.norm.eps) for _ in names]
    return nn.Identity() if not norms else norms[0] if len(norms) == 1 else nn.ModuleList(norms)


def _normalised(norms: nn.Module, states: Tensor) -> Tensor:
    """Normalise states, or each part of them by its own norm."""
    if not isinstance(norms, nn.ModuleList):
        return norms(states)  # type: ignore[no-any-return]
    parts = states.chunk(len(norms), dim=-1)
    return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=-1)


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

    def recycle(
        self, ids: Tensor, hidden: Tensor, cache: Cache | None = None, *, every_token: bool = False, place: int = 0
    ) -> Output:
        """Predict the token after each of `ids` [B, S] (at p+1) from `hidden` [B, S, n·H] (at p).

        The logits are [B, S, draft vocabulary], of the whole vocabulary with `every_token`. `place` is that of the
        predicted tokens in a chain.
        """
        states, own = self.recycled_states(ids, hidden, cache, place)
        return Output(self.module_logits(states, every_token=every_token, place=place), own)

    def module_logits(self, states: Tensor, *, every_token: bool = False, place: int = 0) -> Tensor:
        """Compute the module's logits of states [B, S, H]; with `every_token` of the whole vocabulary.

        (A head of its own gives tokens that it has no row for minus infinity.)
        """
        if self.recycler.config.lm_head == "shared":
            return self.full.logits(states, None if every_token else self.draft_ids)
        logits: Tensor = self.recycler.head(place)(states)
        if self.draft_ids is None or not every_token:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.full.config.vocab_size), float("-inf"))
        return whole.index_copy(-1, self.draft_ids, logits)

    def module_head(self, place: int = 0) -> tuple[Tensor, float, float | None]:
        """Return the rows that give the module's logits [V, H], what states are multiplied by, and the logits' cap."""
        if self.recycler.config.lm_head == "own":
            return self.recycler.head(place).weight, 1.0, None
        head, config = self.full.lm_head.weight, self.full.config
        return head if self.draft_ids is None else head[self.draft_ids], config.logit_scale, config.logit_softcap

    def recycled_states(
        self, ids: Tensor, hidden: Tensor, cache: Cache | None = None, place: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the module's states for the LM head [B, S, H], and those that a chain goes on from [B, S, n·H]."""
        own_table = self.recycler.config.embedding == "own"
        embedding = self.recycler.embed_tokens(ids) if own_table else self.full.embed(ids, cache)
        own: tuple[Tensor, Tensor] = self.recycler(embedding, hidden, self.full.rotary, cache, place)
        return own

    def chosen(self, output: Output) -> Tensor:
        """Return the token ids [B, S] to which the module gives most probability."""
        best = output.logits.argmax(-1)
        return best if self.draft_ids is None else self.draft_ids[best]

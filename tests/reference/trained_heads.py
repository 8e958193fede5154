"""Heads that are trained for some seconds on a small base, each in its own convention, and written in some format."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from recycle_onnx.checkpoint import BaseConfig, Checkpoint, RecyclerConfig
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.files import write_json
from recycle_onnx.training import objective, targets
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.model import FullModel, RecycleGPT
from recycle_onnx.training.storage import load_base

WINDOWS, LENGTH, BATCH, DEPTH = 512, 64, 16, 2
TEMPERATURE = 0.8


@cache
def base_model(folder: Path, taps: tuple[str, ...]) -> FullModel:
    """The base in torch, with hidden states at `taps`."""
    with Checkpoint.open(folder, base_only=True) as opened:
        loaded = load_base(opened.base, opened.base_weights, torch.float32)
    model = FullModel(loaded.config, taps).requires_grad_(False).eval()
    model.load_state_dict(loaded.state_dict())
    return model


@cache
@torch.no_grad()
def own_text(folder: Path) -> torch.Tensor:
    """Windows of text [N, S] that the base wrote, by sampling."""
    generator = torch.Generator().manual_seed(1)
    model = base_model(folder, ("final_post",))
    ids = torch.full((WINDOWS, 1), 1)
    caches = new_cache(model.config, model.config.num_layers, WINDOWS)
    while ids.shape[1] < LENGTH:
        logits = model(ids[:, -1:], caches).logits[:, -1] / TEMPERATURE
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
    return ids


def trained(folder: Path, config: RecyclerConfig, steps: int = 250, seed: int = 0) -> RecycleGPT:
    """A module of these conventions, trained against the base's distribution for some seconds."""
    full, text = base_model(folder, config.tap), own_text(folder)
    torch.manual_seed(seed)
    model = RecycleGPT(full.config, config)
    model.full = full
    for name, parameter in model.recycler.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0.0, parameter.shape[1] ** -0.5 * (0.3 if "o_proj" in name else 1.0))
        elif name in ("hidden_norm.weight", "norm.weight"):
            torch.nn.init.uniform_(parameter, 0.3, 3.0)  # norms that long training would have moved
    said = targets.base_targets(full, text)
    optimizer = torch.optim.AdamW(model.recycler.parameters(), lr=4e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        start = step * BATCH % (len(text) - BATCH + 1)
        rows = slice(start, start + BATCH)
        losses = objective.frozen_base(model, text[rows], said[rows], DEPTH)
        optimizer.zero_grad()
        losses.recycle.backward()
        torch.nn.utils.clip_grad_norm_(model.recycler.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def write_head(folder: Path, model: RecycleGPT, form: HeadFormat, config: dict[str, Any]) -> Path:
    """The trained tensors by the names of `form`, beside a `config.json`."""
    folder.mkdir()
    stored = {name: pattern.format(layers=model.full.config.num_layers) for pattern, name in form.tensors.items()}
    tensors = {}
    for name, tensor in model.recycler.state_dict().items():
        prefix = max((each for each in stored if name.startswith(each)), key=len)
        tensors[stored[prefix] + name.removeprefix(prefix)] = tensor.detach().clone().contiguous()
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    return folder


def layer_config(base: BaseConfig) -> dict[str, Any]:
    """The `config.json` of a layer like the base's."""
    raw = base.to_hugging_face()
    return {name: value for name, value in raw.items() if name not in ("architectures", "torch_dtype")}

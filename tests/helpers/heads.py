"""Random heads in the formats of others, written with numpy: no torch, a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from recycle_onnx.checkpoint import RecyclerConfig
from recycle_onnx.checkpoint.draft_vocabulary import DraftFile
from recycle_onnx.checkpoint.heads import eagle3, medusa, mtp
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.recycler import ATTENTION, WITHOUT_LAYERS
from recycle_onnx.files import write_json
from tests.helpers import tiny

Tensors = dict[str, np.ndarray]
DEPTH, DRAFT = 6, 64
LAYERS: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "hidden_act": "silu",
}  # fmt: skip
"""Not of the base's kind, which has two heads of 16."""
EAGLE3 = {"speculators_model_type": "eagle3", "transformer_layer_config": LAYERS, "draft_vocab_size": DRAFT,
          "eagle_aux_hidden_state_layer_ids": [1, 3, 5]}  # fmt: skip


MEDUSA = RecyclerConfig(
    layer="llama", join=None, places=3, blocks=2, projection_bias=True, lm_head="own", **WITHOUT_LAYERS
)  # fmt: skip


def write_base(folder: Path) -> Path:
    """A base of six layers."""
    return tiny.write_base(folder, tiny.tiny_config(num_layers=DEPTH))


def tensors_of(config: RecyclerConfig, form: HeadFormat) -> Tensors:
    """Random tensors of a head by the names of `form`."""
    generator = np.random.default_rng(6)
    patterns: dict[str, list[str]] = {}
    for pattern, name in form.tensors.items():
        patterns.setdefault(name, []).append(pattern.format(layers=DEPTH))
    # An LM head's number among Medusa's patterns is that of the blocks before it.
    stored = {name: own[config.blocks - 1 if len(own) > 1 else 0] for name, own in patterns.items()}
    tensors = {}
    for name, shape in config.tensor_shapes(tiny.tiny_config(num_layers=DEPTH)).items():
        prefix = max((each for each in stored if name.startswith(each)), key=len)
        values = 1 + 0.1 * generator.standard_normal(shape) if len(shape) == 1 else generator.normal(0, 0.2, shape)
        tensors[stored[prefix] + name.removeprefix(prefix)] = values.astype(np.float32)
    return tensors


def eagle3_tensors(draft: int | None = DRAFT) -> Tensors:
    """The tensors of an EAGLE-3 head as the library speculators writes them."""
    config = RecyclerConfig(
        1, "llama", tap=("layer.1", "layer.3", "layer.5"), fusion="linear", join=ATTENTION, recycle="pre_norm",
        lm_head="own", layer_config=LAYERS, draft_vocabulary=None if draft is None else DraftFile(draft),
    )  # fmt: skip
    tensors = tensors_of(config, eagle3.FORMAT)
    if draft is not None:
        ids = np.sort(np.random.default_rng(7).permutation(300)[:draft])
        tensors |= {"d2t": ids - np.arange(draft), "t2d": np.isin(np.arange(300), ids)}
    return tensors


def write_eagle3(folder: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    """An EAGLE-3 head for `write_base`'s base."""
    folder.mkdir()
    save_file(eagle3_tensors() if tensors is None else tensors, folder / "model.safetensors")
    write_json(folder / "config.json", {**EAGLE3, **config})
    return folder


def write_medusa(folder: Path) -> Path:
    """Medusa heads for `write_base`'s base."""
    folder.mkdir()
    save_file(tensors_of(MEDUSA, medusa.FORMAT), folder / "model.safetensors")
    write_json(folder / "config.json", {"medusa_num_heads": 2, "medusa_num_layers": 2})
    return folder


def add_mtp_layer(base: Path, form: HeadFormat = mtp.DEEPSEEK) -> Path:
    """A layer that predicts the token after next, or Medusa heads, in the base's own file."""
    path, config = base / "model.safetensors", MEDUSA
    if form is not medusa.INSIDE:
        config = form.conventions(None, tiny.tiny_config(num_layers=DEPTH))  # type: ignore[arg-type] -- reads no files
    save_file(load_file(path) | tensors_of(config, form), path, metadata={"format": "pt"})
    return base

"""Logits, hidden states and keys of small random models, made by transformers and torch (`make_vectors.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers import tiny

VECTORS = Path(__file__).parent
MODELS: dict[str, dict[str, Any]] = {
    "fused-rotary": {"tied_embeddings": False},
    "rotary-operator": {"head_dim": 8, "num_heads": 4, "num_kv_heads": 2},
    "wide-heads": {"head_dim": 48, "num_layers": 3},
}


def write_model(name: str, folder: Path, **changes: Any) -> Path:
    """The checkpoint that the vectors of this name belong to, with a module of two layers."""
    config = tiny.tiny_config(**{**MODELS[name], **changes})
    return tiny.write_checkpoint(folder, config, seed=5, num_layers=2)

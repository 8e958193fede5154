"""What sentence-transformers writes beside the weights of an embedding base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recycle_onnx.files import write_json

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
LAST = {
    "word_embedding_dimension": 64,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_lasttoken": True,
    "include_prompt": True,
}
"""As in Qwen3-Embedding-0.6B."""


def write_pooling(folder: Path, config: dict[str, Any]) -> None:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "1_Pooling" / "config.json", config)

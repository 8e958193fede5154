"""Bundles with random weights in the shape of well-known models, to measure speed where no weights are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from recycle_onnx.checkpoint import BaseConfig, PlainLlama
from recycle_onnx.errors import InputError
from recycle_onnx.files import write_json
from recycle_onnx.safetensors_file import write_arrays

_LLAMA: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_layers": 22,
    "num_heads": 32,
    "num_kv_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "context_length": 2048,
    "tied_embeddings": False,
}
_QWEN3 = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_layers": 28, "num_heads": 16, "num_kv_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "context_length": 8192, "tied_embeddings": True,
}  # fmt: skip
_SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
    "vocab_size": 49152, "context_length": 8192, "tied_embeddings": True,
}  # fmt: skip
_LLAMA32 = {
    "intermediate_size": 8192, "num_layers": 16, "num_kv_heads": 8, "vocab_size": 128256, "context_length": 8192,
    "tied_embeddings": True,
}  # fmt: skip
SHAPES = {
    "tinyllama-1.1b": PlainLlama(**_LLAMA).describe(),
    "smollm2-135m": PlainLlama(**{**_LLAMA, **_SMOLLM2}).describe(),
    "qwen3-0.6b": PlainLlama(**{**_LLAMA, **_QWEN3}).describe(),
    "llama3.2-1b": PlainLlama(**{**_LLAMA, **_LLAMA32}).describe(),
}
"""Sizes only: every shape is built as a plain Llama, also where the model has norms or scalings of its own."""


def shape(name: str) -> BaseConfig:
    """Return the dimensions of a known shape.

    Raises:
        InputError: no such shape.
    """
    if name not in SHAPES:
        raise InputError(f"shape {name!r} is not known; expected one of: {', '.join(SHAPES)}")
    return SHAPES[name]


def write_random_base(folder: Path, config: BaseConfig) -> None:
    """Write a Hugging Face folder of this shape: float16, every tensor drawn anew (equal ones would share memory)."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    tensors = {}
    for name, sizes in config.tensor_shapes().items():
        if len(sizes) == 1:
            tensors[name] = np.ones(sizes, np.float16)
        else:
            values = generator.standard_normal(sizes, np.float32)
            tensors[name] = (values / np.float32(sizes[-1] ** 0.5)).astype(np.float16)
    write_arrays(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config.to_hugging_face())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<0>"})
    letters = {f"<{index}>": index for index in range(config.vocab_size)}
    Tokenizer(models.WordLevel(letters, unk_token="<0>")).save(str(folder / "tokenizer.json"))

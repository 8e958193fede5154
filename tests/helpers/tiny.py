"""Small random checkpoints, written with numpy: the shapes that matter, in a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 -- makes numpy know bfloat16
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recycle_onnx.checkpoint import BaseConfig, NewModule, PlainLlama, attach
from recycle_onnx.files import write_json

END = "<|endoftext|>"
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
TEXT = "the cat sat on the mat, the dog sat on the log, and a hen ran to the pen"


def tiny_config(**changes: Any) -> BaseConfig:
    """Two layers of 32 with two heads of 16 that share one key-value head."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "vocab_size": 300,
        "context_length": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tied_embeddings": True,
    }
    return PlainLlama(**{**sizes, **changes}).describe()


def write_base(folder: Path, config: BaseConfig, seed: int = 0, dtype: str = "float32") -> Path:
    """A Hugging Face folder with random weights and a byte-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            values = 1 + 0.1 * generator.standard_normal(shape)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            values = 0.5 * generator.standard_normal(shape)
        else:
            values = generator.standard_normal(shape) / shape[1] ** 0.5
        tensors[name] = values.astype(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config.to_hugging_face(**SPECIAL))
    write_text_files(folder)
    return folder


def write_endless_base(folder: Path, context_length: int) -> Path:
    """One that writes for minutes unless somebody stops it: the token that ends a text is never the likeliest."""
    write_base(folder, tiny_config(context_length=context_length))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][SPECIAL["eos_token_id"]] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_text_files(folder: Path) -> None:
    """A tokenizer, and configs that agree with it."""
    write_json(folder / "generation_config.json", SPECIAL)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "add_bos_token": True,
            "add_eos_token": False,
        },
    )
    tokenizer().save(str(folder / "tokenizer.json"))


def write_checkpoint(
    folder: Path, config: BaseConfig, seed: int = 0, num_layers: int = 1, dtype: str = "float32"
) -> Path:
    """A base with an untrained module."""
    write_base(folder, config, seed, dtype)
    attach(folder, folder, NewModule(num_layers=num_layers, seed=seed))
    return folder


def tokenizer() -> Tokenizer:
    """Byte-level BPE of at most 300 tokens; every text starts with `<|endoftext|>`, id 0."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    made.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return made

"""A fresh Llama base with an untrained module, to be trained jointly from scratch (RecycleGPT, arXiv 2308.03421)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recycle_onnx.checkpoint.attach import NewModule, attach
from recycle_onnx.checkpoint.base import BaseConfig, Shapes
from recycle_onnx.checkpoint.families import read_config
from recycle_onnx.checkpoint.plain import PlainLlama
from recycle_onnx.checkpoint.recycler import RecyclerConfig
from recycle_onnx.errors import InputError
from recycle_onnx.files import check_target, new_folder, read_json, users_folders, write_json
from recycle_onnx.safetensors_file import write_arrays
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.untrusted import copy_file

DEVIATION = 0.02
"""Of fresh weights, as GPT-2 and Llama have it."""
SHARD = 2**28
"""Values in a file of weights, at most: what is held in memory while it is written."""
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""What widespread tokenizers call the token that ends a text; the first one that the vocabulary has is taken."""


@dataclass(frozen=True)
class Preset:
    """The dimensions of a base and, in layers, of its module."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    context_length: int
    tied_embeddings: bool
    module_layers: int


PRESETS = {
    "tiny": Preset(256, 512, 6, 4, 2, 512, True, 1),
    "small": Preset(576, 1536, 12, 9, 3, 1024, True, 2),
    "base-1.3b": Preset(2048, 5504, 24, 32, 32, 2048, False, 6),
}
"""The sample's; a tenth of a billion with a large vocabulary; the scale of the paper."""


def create(
    out: Path, preset: str, tokenizer: Path, *, num_layers: int | None = None, seed: int = 0, force: bool = False
) -> RecyclerConfig:
    """Write `out`: a base of the preset's shape with weights drawn from `seed` in float16, and an untrained module.

    `tokenizer` is a `tokenizer.json` or a folder with one; its vocabulary is the model's. `num_layers` counts those
    of the module, the preset's own by default. Weights are normal with deviation 0.02, those that add to the residual
    stream less by the square root of twice the depth (GPT-2's way).

    Raises:
        InputError: no such preset or tokenizer, too many layers, or `out` exists (unless `force`).
    """
    if preset not in PRESETS:
        raise InputError(f"--preset is {preset!r}; expected one of: {', '.join(PRESETS)}")
    shape = PRESETS[preset]
    layers = shape.module_layers if num_layers is None else num_layers
    origin = tokenizer if tokenizer.is_dir() else tokenizer.parent
    check_target(out, force=force, keep=[origin, *users_folders()])
    with new_folder(out, force=force, keep=[origin, *users_folders()]) as folder:
        _write_tokenizer(tokenizer, folder)
        _write_configs(shape, folder, tokenizer)
        _write_weights(read_config(folder / "config.json")[0], folder, seed)
        return attach(folder, folder, NewModule(layers, seed=seed))


def _write_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy a tokenizer's files, or write a config for a lone `tokenizer.json`."""
    if not tokenizer.exists():
        raise InputError(f"{tokenizer}: no such file; expected a tokenizer.json, or a folder with one")
    files = [tokenizer / name for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]
    for path in files if tokenizer.is_dir() else [tokenizer]:
        if path.exists():
            read_json(path)  # here, where an error names the user's file and not the copy
            copy_file(path, folder / (path.name if tokenizer.is_dir() else "tokenizer.json"))
    load_tokenizer(folder, named=files[0] if tokenizer.is_dir() else tokenizer)
    path = folder / "tokenizer_config.json"
    if not path.exists():
        end = _end(load_tokenizer(folder), {}, tokenizer)
        write_json(path, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end})


def _end(tokenizer: Tokenizer, config: dict[str, Any], path: Path) -> str:
    """Return the token that ends a text."""
    for token in (_text(config.get("eos_token")), *ENDS):
        if token is not None and tokenizer.token_to_id(token) is not None:
            return token
    raise InputError(f"{path}: no token that ends a text; name its eos_token in a tokenizer_config.json beside it")


def _text(token: Any) -> str | None:
    """Return the text of a special token as a tokenizer's config names it: a string, or an object that holds one."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _write_configs(shape: Preset, folder: Path, tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    config = read_json(folder / "tokenizer_config.json")
    end = _end(tokenizer, config, tokenizer_path)
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= 2 * len(vocabulary):
        raise InputError(
            f"{tokenizer_path}: {len(vocabulary)} tokens with ids up to {max(vocabulary.values())}; damaged"
        )
    begin = _text(config.get("bos_token"))
    special = {"bos_token_id": vocabulary.get(begin or end, vocabulary[end]), "eos_token_id": vocabulary[end]}
    base = PlainLlama(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        vocab_size=max(vocabulary.values()) + 1,
        context_length=shape.context_length,
        tied_embeddings=shape.tied_embeddings,
    ).describe()
    write_json(folder / "config.json", base.to_hugging_face(**special))
    write_json(folder / "generation_config.json", special)


def _write_weights(config: BaseConfig, folder: Path, seed: int) -> None:
    """Write one safetensors file, or several with their index where it would be large: one at a time in memory."""
    generator = np.random.default_rng(seed)
    shards = list(_shards(config.tensor_shapes()))
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    where: dict[str, str] = {}
    for name, shapes in zip(names, shards, strict=True):
        tensors = {tensor: _draw(tensor, shape, config.num_layers, generator) for tensor, shape in shapes.items()}
        write_arrays(folder / name, tensors)
        where |= dict.fromkeys(shapes, name)
    if len(shards) > 1:
        size = 2 * sum(int(np.prod(shape)) for shape in config.tensor_shapes().values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    part: Shapes = {}
    values = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        if part and values + size > SHARD:
            yield part
            part, values = {}, 0
        part[name] = shape
        values += size
    yield part


def _draw(name: str, shape: tuple[int, ...], layers: int, generator: np.random.Generator) -> NDArray[np.float16]:
    if len(shape) == 1:
        return np.ones(shape, np.float16)
    residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    deviation = DEVIATION / (2 * layers) ** 0.5 if residual else DEVIATION
    return (np.float32(deviation) * generator.standard_normal(shape, np.float32)).astype(np.float16)

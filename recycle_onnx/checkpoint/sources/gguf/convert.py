"""One GGUF file to one Hugging Face folder, whose weights are a copy in safetensors or stay in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recycle_onnx.checkpoint.sources.gguf.base import GgufBase
from recycle_onnx.checkpoint.sources.gguf.tensors import write_safetensors
from recycle_onnx.checkpoint.sources.gguf.tokenizer import Vocabulary
from recycle_onnx.checkpoint.sources.referred import refer
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256, write_json
from recycle_onnx.progress import Progress, silent
from recycle_onnx.provenance import COPY, write_source


def convert(
    path: Path,
    folder: Path,
    *,
    reference_at: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
) -> None:
    """Write the GGUF file `path` into the empty `folder`, in Hugging Face layout, with `source.json`.

    Floats keep their type, quantized tensors become float32. With `reference_at`, where the folder will lie, no weights
    are written: `weights.json` refers to the file. `note` is told what the user should know, `progress` the tensors
    that are written, of how many, and which one comes.

    Raises:
        InputError: not a GGUF file, a damaged one, or one that is not supported.
    """
    base = GgufBase.read(path)
    vocabulary = Vocabulary.read(base.file, base.keys.architecture)
    _check_tokens(base, vocabulary)
    base.tell(note)
    config = {**base.config, **vocabulary.special_ids()}
    vocabulary.write(folder, config["max_position_embeddings"])
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", vocabulary.generation_config())
    source = base.source()
    if reference_at is None:
        copy = folder / "model.safetensors"
        write_safetensors(copy, base.file, base.tensors, progress)
        source[COPY] = sha256(copy)
    else:
        refer(folder, path, reference_at, source["sha256"])
    write_source(folder, {**source, "stop_ids": vocabulary.named_ends()})


def _check_tokens(base: GgufBase, vocabulary: Vocabulary) -> None:
    if (rows := base.config["vocab_size"]) != len(vocabulary.tokens):
        raise InputError(
            f"{base.file.path}: {len(vocabulary.tokens)} tokens, but {rows} rows in token_embd.weight; damaged"
        )

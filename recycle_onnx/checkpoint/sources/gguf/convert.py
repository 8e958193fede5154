"""One GGUF file to one Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recycle_onnx import __version__
from recycle_onnx.checkpoint.base_weights import stored_shapes
from recycle_onnx.checkpoint.families import describe
from recycle_onnx.checkpoint.sources.gguf.families import config_of, family_of
from recycle_onnx.checkpoint.sources.gguf.keys import Keys
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile
from recycle_onnx.checkpoint.sources.gguf.tensors import ITEM_SIZES, Renamed, rename, write_safetensors
from recycle_onnx.checkpoint.sources.gguf.tokenizer import Vocabulary
from recycle_onnx.checkpoint.weights import check_shapes
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256, write_json
from recycle_onnx.provenance import write_source

TYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def convert(
    path: Path,
    folder: Path,
    *,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> None:
    """Write the GGUF file `path` into the empty `folder`, in Hugging Face layout, with `source.json`.

    Floats keep their type, quantized tensors become float32. `note` is told what the user should know, `progress`
    the tensors that are done, of how many, and which one comes.

    Raises:
        InputError: not a GGUF file, a damaged one, or one that is not supported.
    """
    file = GgufFile(path)
    keys = Keys(file)
    family = family_of(keys)
    _check_layers(file, keys)
    config = config_of(keys, family)
    vocabulary = Vocabulary.read(file, keys.architecture)
    config["vocab_size"] = _vocab_size(file, vocabulary)
    described = describe(config, path)  # refuses sizes that contradict each other
    tensors = rename(file, family, config)
    found = {tensor.name: tensor.tensor.shape for tensor in tensors}
    check_shapes(path, found, stored_shapes(*described, set(found)))
    config |= {**vocabulary.special_ids(), "dtype": TYPE_NAMES[_type_of(tensors)]}
    _tell(file, keys, note)
    vocabulary.write(folder, config["max_position_embeddings"])
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", vocabulary.generation_config())
    write_safetensors(folder / "model.safetensors", file, tensors, progress)
    write_source(folder, {**_source(file, keys), "stop_ids": vocabulary.named_ends()})


def _check_layers(file: GgufFile, keys: Keys) -> None:
    """Compare the number of layers with the tensors that there are: one a layer at least."""
    if (layers := keys.count("block_count")) > len(file.tensors):
        raise keys.error("block_count", f"is {layers}, and there are {len(file.tensors)} tensors; damaged")


def _vocab_size(file: GgufFile, vocabulary: Vocabulary) -> int:
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path}: tensor 'token_embd.weight' is missing; the file is damaged or of another kind")
    rows = file.tensors["token_embd.weight"].shape[0]
    if rows != len(vocabulary.tokens):
        raise InputError(f"{file.path}: {len(vocabulary.tokens)} tokens, but {rows} rows in token_embd.weight; damaged")
    return rows


def _type_of(tensors: list[Renamed]) -> str:
    """The type of most of the weights."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return max(sizes, key=lambda kind: sizes[kind])


def _tell(file: GgufFile, keys: Keys, note: Callable[[str], None]) -> None:
    if quantized := [kind for kind in file.types() if kind not in ITEM_SIZES]:
        note(
            f"{file.path.name} is quantized ({', '.join(quantized)}); its weights are dequantized to float32, "
            "and what quantization lost stays lost"
        )
    if unused := keys.unused():
        note(f"{file.path.name}: keys that were not used: {', '.join(unused)}")


def _source(file: GgufFile, keys: Keys) -> dict[str, Any]:
    licence = file.metadata.get("general.license")
    return {
        "kind": "gguf",
        "file": file.path.name,
        "bytes": file.path.stat().st_size,
        "sha256": sha256(file.path),
        "name": file.metadata.get("general.name"),
        "architecture": keys.architecture,
        "tensor_types": file.types(),
        **({} if licence is None else {"license": str(licence)}),
        "converter": f"recycle-onnx {__version__}",
    }

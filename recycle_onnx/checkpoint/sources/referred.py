"""`weights.json`: the weights of a base stay in a GGUF file elsewhere, found by path and recognised by digest."""

from __future__ import annotations

import os
from pathlib import Path

from recycle_onnx.checkpoint.weights import Safetensors, Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256, write_json

REFERENCE = "weights.json"


def refer(folder: Path, file: Path, place: Path, digest: str) -> None:
    """Let the base in `folder`, which will lie at `place`, have its weights in the GGUF `file` of this SHA-256."""
    path = os.path.relpath(file.resolve(), place.resolve())
    write_json(folder / REFERENCE, {"gguf": Path(path).as_posix(), "sha256": digest})


def find_weights(folder: Path) -> Weights:
    """Open the weights of the base in `folder`: its safetensors, or the GGUF file that it refers to.

    Raises:
        InputError: they are missing or damaged, or the GGUF file is not the one that `folder` was made for.
    """
    reference = folder / REFERENCE
    if not reference.is_file():
        return Safetensors.find(folder)
    raw = read_json(reference)
    if not isinstance(raw.get("gguf"), str) or not isinstance(raw.get("sha256"), str):
        raise InputError(f"{reference}: expected the path of a GGUF file under 'gguf', and its 'sha256'")
    path = folder / raw["gguf"]
    if not path.is_file():
        raise InputError(f"{folder}: its weights lie at {path}, which does not exist; put it back or attach again")
    if (digest := sha256(path)) != raw["sha256"]:
        raise InputError(
            f"{path}: differs from the file that {folder} was made for (SHA-256 {digest[:12]}…, expected "
            f"{raw['sha256'][:12]:.20}…); restore it or attach again"
        )
    from recycle_onnx.checkpoint.sources.gguf.weights import GgufWeights  # needs the extra `gguf`

    return GgufWeights(path)

"""`weights.json`: the weights of a base stay elsewhere, in a GGUF file or a folder, and an adapter may change them.

They are recognised by digest: a GGUF file by one in `weights.json`, a folder and an adapter by the one that a module
beside this base has of all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.adapter import Adapter
from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.base_weights import table_names
from recycle_onnx.checkpoint.families.family import Family
from recycle_onnx.checkpoint.merged import MergedWeights
from recycle_onnx.checkpoint.pooling import POOLING_FOLDER
from recycle_onnx.checkpoint.quantized import opened
from recycle_onnx.checkpoint.weights import Safetensors, Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256, write_json

REFERENCE = "weights.json"
"""In the base's folder, in place of weights."""
HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".data")
"""Endings of weights: a base's own are copied by themselves, others are not."""


def refer(folder: Path, file: Path, place: Path, digest: str) -> None:
    """Let the base in `folder`, which will lie at `place`, have its weights in the GGUF `file` of this SHA-256."""
    write_json(folder / REFERENCE, {"gguf": _relative(file, place), "sha256": digest})


def refer_adapted(folder: Path, adapter: Path, place: Path, weights: Path | None = None) -> None:
    """Let the base in `folder`, which will lie at `place`, have its weights changed by `adapter`.

    They are those that `folder` has or refers to already, or those of the folder `weights`.
    """
    elsewhere = {} if weights is None else {"folder": _relative(weights, place)}
    write_json(folder / REFERENCE, {**_read_reference(folder), **elsewhere, "adapter": _relative(adapter, place)})


def _relative(path: Path, place: Path) -> str:
    return Path(os.path.relpath(path.resolve(), place.resolve())).as_posix()


def find_weights(folder: Path, base: BaseConfig, family: Family) -> Weights:
    """Open the weights of the base in `folder`: its safetensors, or what it refers to, an adapter merged.

    Raises:
        InputError: they are missing or damaged, the GGUF file is not the one that `folder` was made for, or the
            adapter is for another base.
    """
    raw = _read_reference(folder)
    other = _existing(folder, raw["folder"]) if "folder" in raw else folder
    own = _read_reference(other)
    if other != folder and not own.keys() <= {"gguf", "sha256"}:
        raise InputError(f"{folder}: its weights lie at {other}, which has an adapter itself; name its base")
    weights = _gguf(other, own) if "gguf" in own else opened(folder, base.raw, Safetensors.find(other))
    if "adapter" not in raw:
        return weights
    tables = table_names(family, weights.names()) if base.tied_embeddings else None
    return MergedWeights(weights, Adapter(_existing(folder, raw["adapter"])), tables)


def _read_reference(folder: Path) -> dict[str, Any]:
    """Return what a base refers to, nothing where its weights lie beside its config."""
    reference = folder / REFERENCE
    if not reference.is_file():
        return {}
    raw = read_json(reference)
    if not _is_reference(raw):
        raise InputError(f"{reference}: expected the path of a GGUF file under 'gguf', and its 'sha256'")
    return raw


def _is_reference(raw: dict[str, Any]) -> bool:
    """Tell whether it names a GGUF file with its digest, or an adapter, of weights here or in another folder."""
    texts = all(isinstance(raw[name], str) for name in ("gguf", "sha256", "folder", "adapter") if name in raw)
    return texts and ("sha256" in raw if "gguf" in raw else "adapter" in raw)


def _existing(folder: Path, relative: str) -> Path:
    path = Path(os.path.normpath(folder.resolve() / relative))
    if not path.exists():
        raise InputError(f"{folder}: its weights lie at {path}, which does not exist; put it back or attach again")
    return path


def _gguf(folder: Path, raw: dict[str, Any]) -> Weights:
    path = _existing(folder, raw["gguf"])
    if (digest := sha256(path)) != raw["sha256"]:
        raise InputError(
            f"{path}: differs from the file that {folder} was made for (SHA-256 {digest[:12]}…, expected "
            f"{raw['sha256'][:12]:.20}…); restore it or attach again"
        )
    from recycle_onnx.checkpoint.sources.gguf.weights import GgufWeights  # needs the extra `gguf`

    return GgufWeights(path)


def except_weights(base: Path) -> Callable[[str, list[str]], list[str]]:
    """Leave out weights of all formats, caches and an older module: only what belongs to this base is copied."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        if Path(folder) != base:
            return [name for name in names if name != "config.json"]  # of a pooling
        folders = [name for name in names if name != POOLING_FOLDER and (Path(folder) / name).is_dir()]
        return [*folders, REFERENCE, *(name for name in names if name.endswith(HEAVY))]

    return ignore

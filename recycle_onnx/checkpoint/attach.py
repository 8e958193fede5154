"""Give a base an untrained module, initialised from the base's own last layers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.folder import Checkpoint, base_reference
from recycle_onnx.checkpoint.full_disk import disk_errors
from recycle_onnx.checkpoint.recycler import RecyclerConfig
from recycle_onnx.checkpoint.weights import Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import new_folder, write_json

PROJECTION_NOISE = 0.02


def attach(
    base: Path, out: Path, *, num_layers: int = 1, reference: bool = False, seed: int = 0, force: bool = False
) -> RecyclerConfig:
    """Write `out`: the base with an untrained module of `num_layers` decoder layers.

    The base is copied; with `reference` it stays where it is and is found by path and digest. Where `out` is the
    base itself, only `recycler/` is added.

    Raises:
        InputError: `base` is not a supported checkpoint, has fewer layers, or `out` exists (unless `force`).
    """
    with Checkpoint.open(base, base_only=True) as checkpoint:
        if not 1 <= num_layers <= checkpoint.base.num_layers:
            raise InputError(f"--layers is {num_layers}; expected 1 to {checkpoint.base.num_layers}, the base's own")
        in_place = out.exists() and out.samefile(base)
        origin = checkpoint.base_folder
        elsewhere = origin != checkpoint.folder if in_place else reference
        path = Path(os.path.relpath(origin.resolve(), out.resolve())) if elsewhere else None
        config = RecyclerConfig(num_layers, base=base_reference(origin, checkpoint.base_weights, path=path))
        tensors = _initial_tensors(checkpoint.base, checkpoint.base_weights, config, seed)
        with _destination(out, in_place, force, checkpoint.folders()) as folder:
            if not in_place and path is None:
                shutil.copytree(origin, folder.parent, dirs_exist_ok=True, ignore=_except_weights_of(checkpoint))
            with disk_errors():
                save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            write_json(folder / "config.json", config.to_json())
    return config


@contextmanager
def _destination(out: Path, in_place: bool, force: bool, keep: list[Path]) -> Iterator[Path]:
    """The `recycler/` folder to fill: alone when the base is already there, in a new checkpoint otherwise."""
    if in_place:
        with new_folder(out / "recycler", force=force) as folder:
            yield folder
        return
    with new_folder(out, force=force, keep=keep) as checkpoint:
        (checkpoint / "recycler").mkdir()
        yield checkpoint / "recycler"


def _except_weights_of(checkpoint: Checkpoint) -> Callable[[str, list[str]], list[str]]:
    """Leave out other weight formats, caches and an older module: only what belongs to this base is copied."""
    ours = {path.name for path in checkpoint.base_weights.files}
    heavy = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".data")

    def ignore(folder: str, names: list[str]) -> list[str]:
        if Path(folder) != checkpoint.base_folder:
            return names
        folders = [name for name in names if (Path(folder) / name).is_dir()]
        return folders + [name for name in names if name.endswith(heavy) and name not in ours]

    return ignore


def _initial_tensors(
    base: BaseConfig, weights: Weights, config: RecyclerConfig, seed: int
) -> dict[str, NDArray[np.generic]]:
    """Last layers and final norm of the base; a projection that averages its two inputs, plus a little noise."""
    generator = np.random.default_rng(seed)
    half = 0.5 * np.eye(base.hidden_size, dtype=np.float32)
    noise = generator.normal(0.0, PROJECTION_NOISE, (base.hidden_size, 2 * base.hidden_size)).astype(np.float32)
    ones = np.ones(base.hidden_size, dtype=np.float32)
    tensors: dict[str, NDArray[np.generic]] = {
        "embedding_norm.weight": ones,
        "hidden_norm.weight": ones.copy(),
        "projection.weight": np.concatenate([half, half], axis=1) + noise,
        "norm.weight": weights.stored("model.norm.weight"),
    }
    first = base.num_layers - config.num_layers
    for index in range(config.num_layers):
        for own, theirs in zip(
            base.layer_shapes(f"layers.{index}."), base.layer_shapes(f"model.layers.{first + index}."), strict=True
        ):
            tensors[own] = weights.stored(theirs)
    kind = weights.stored("model.norm.weight").dtype
    return {name: value.astype(kind) for name, value in tensors.items()}

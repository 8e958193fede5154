"""A checkpoint put together of a base and a module: the base is copied, referred to, or there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recycle_onnx.checkpoint.folder import Checkpoint, base_reference
from recycle_onnx.checkpoint.identity import BaseReference
from recycle_onnx.checkpoint.sources.referred import REFERENCE
from recycle_onnx.files import new_folder
from recycle_onnx.untrusted import copy_tree

HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".data")
"""Endings of weights: a base's own are copied by themselves, others are not."""


def reference_from(base: Checkpoint, out: Path, *, reference: bool) -> BaseReference:
    """Return how a module in the checkpoint `out` refers to its `base`."""
    origin = base.base_folder
    elsewhere = origin != base.folder if _in_place(base, out) else reference
    path = Path(os.path.relpath(origin.resolve(), out.resolve())) if elsewhere else None
    return base_reference(origin, base.base_weights, path=path)


@contextmanager
def module_folder(
    base: Checkpoint, out: Path, *, reference: bool, force: bool, keep: Sequence[Path] = ()
) -> Iterator[Path]:
    """Give the empty `recycler/` of the checkpoint `out` to fill, beside a copy of the base unless by `reference`.

    Where `out` is the base itself, only `recycler/` is added. `keep` is what may not be replaced, as the base.

    Raises:
        InputError: `out` exists (unless `force`), or holds something to keep.
    """
    if _in_place(base, out):
        with new_folder(out / "recycler", force=force, keep=keep) as folder:
            yield folder
        return
    with new_folder(out, force=force, keep=[*base.folders(), *keep]) as checkpoint:
        if not reference:
            copy_tree(base.base_folder, checkpoint, _except_weights(base.base_folder))
            base.base_weights.weights.copy_to(checkpoint)
        (checkpoint / "recycler").mkdir()
        yield checkpoint / "recycler"


def _in_place(base: Checkpoint, out: Path) -> bool:
    return out.exists() and out.samefile(base.folder)


def _except_weights(base: Path) -> Callable[[str, list[str]], list[str]]:
    """Leave out weights of all formats, caches and an older module: only what belongs to this base is copied."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        if Path(folder) != base:
            return names
        folders = [name for name in names if (Path(folder) / name).is_dir()]
        return [*folders, REFERENCE, *(name for name in names if name.endswith(HEAVY))]

    return ignore

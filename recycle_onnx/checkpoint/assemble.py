"""A checkpoint put together of a base and a module: the base is copied, referred to, or there already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recycle_onnx.checkpoint.folder import Checkpoint, base_reference
from recycle_onnx.checkpoint.identity import BaseReference
from recycle_onnx.checkpoint.sources.referred import except_weights
from recycle_onnx.files import new_folder
from recycle_onnx.untrusted import copy_tree


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
            copy_tree(base.base_folder, checkpoint, except_weights(base.base_folder))
            base.base_weights.weights.copy_to(checkpoint)
        (checkpoint / "recycler").mkdir()
        yield checkpoint / "recycler"


def _in_place(base: Checkpoint, out: Path) -> bool:
    return out.exists() and out.samefile(base.folder)

"""Write a checkpoint of a base and someone else's head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from recycle_onnx.checkpoint.assemble import module_folder, reference_from
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.heads.reading import Head
from recycle_onnx.checkpoint.module import CONFIG, WEIGHTS
from recycle_onnx.checkpoint.recycler import RecyclerConfig
from recycle_onnx.files import write_json
from recycle_onnx.safetensors_file import write_arrays


def attach_head(
    checkpoint: Checkpoint, out: Path, head: Head, *, keep: Path, reference: bool = False, force: bool = False
) -> RecyclerConfig:
    """Write `out`: the opened base with `head` as its module; return the module's config.

    `keep` is the head's folder, which may not be replaced. `reference`, and an `out` that is the base itself, are as
    for `attach`.

    Raises:
        InputError: `out` exists (unless `force`), or holds something to keep.
    """
    config = replace(head.config, base=reference_from(checkpoint, out, reference=reference))
    with module_folder(checkpoint, out, reference=reference, force=force, keep=[keep]) as folder:
        write_arrays(folder / WEIGHTS, dict(head.tensors.arrays))
        if config.draft_vocabulary and head.draft_ids:
            config.draft_vocabulary.write(folder, head.draft_ids)
        write_json(folder / CONFIG, config.to_json())
    return config

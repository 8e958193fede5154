"""Put a published module beside the user's own copy of its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.checkpoint.assemble import module_folder, reference_from
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.module import CARD, CONFIG, REFERENCE, WEIGHTS, Module
from recycle_onnx.checkpoint.recycler import RecyclerConfig
from recycle_onnx.files import write_json
from recycle_onnx.untrusted import copy_file


@dataclass(frozen=True)
class Joined:
    """The module's config beside this base, and whether the base's weights are those it was trained on."""

    config: RecyclerConfig
    same_weights: bool


def join(
    base: Path, out: Path, module: Module, *, name: str | None = None, reference: bool = False, force: bool = False
) -> Joined:
    """Write `out`: the base with `module`, which was trained on this base or on another copy of it.

    The base may be stored in another precision, rounded or quantized otherwise; it must compute the same and have the
    same tokens. `reference`, and an `out` that is the base itself, are as for `attach`. `name` is what messages call
    the base, where `base` was made of what the user named.

    Raises:
        InputError: `base` is not a supported checkpoint or another base than the module's, the module is damaged, or
            `out` exists (unless `force`).
    """
    with Checkpoint.open(base, base_only=True) as checkpoint:
        base_identity = reference_from(checkpoint, out, reference=reference)
        config = module.check(checkpoint.base_weights, base_identity, name or str(base))
        same = config.trained_on is None
        files = [WEIGHTS, CARD]
        if config.draft_vocabulary:
            files.append(config.draft_vocabulary.file)
        if same:
            files.append(REFERENCE)  # its logits are those of these very weights
        with module_folder(checkpoint, out, reference=reference, force=force, keep=[module.folder]) as folder:
            for path in (module.folder / name for name in files):
                if path.exists():
                    copy_file(path, folder / path.name)
            write_json(folder / CONFIG, config.to_json())
    return Joined(config, same)

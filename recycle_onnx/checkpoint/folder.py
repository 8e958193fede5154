"""A checkpoint folder: a base, and a module in `recycler/` or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.families import read_config
from recycle_onnx.checkpoint.identity import BaseReference
from recycle_onnx.checkpoint.recycler import RecyclerConfig
from recycle_onnx.checkpoint.sources.referred import find_weights
from recycle_onnx.checkpoint.weights import Safetensors, Weights, refuse_adapter
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256, users_folders

TRAINING_LOG = "training.jsonl"
"""A line a step of the last training, beside the base; a published module has some of them."""
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "source.json",
)
"""What a base has beside its config and weights, and the bundle needs; others are not copied."""


@dataclass
class Checkpoint:
    """An opened checkpoint whose tensors have been checked against its configs."""

    folder: Path
    base_folder: Path
    base: BaseConfig
    base_weights: BaseWeights
    recycler: RecyclerConfig | None = None
    recycler_weights: Weights | None = None
    draft_ids: list[int] | None = None
    """The module's draft vocabulary, ascending; None for all tokens."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, base_only: bool = False) -> Iterator[Checkpoint]:
        """Open a base, with its module if it has one, and close the files afterwards.

        `base_only` leaves a module alone that may be there, whatever its state.

        Raises:
            InputError: not a checkpoint; damaged or contradictory files; a base that the module was not made for.
        """
        own_base = (folder / "config.json").exists()
        recycler = None if base_only and own_base else _read_recycler(folder)
        base_folder = _find_base(folder, recycler)
        recycler = None if base_only else recycler
        base, family = read_config(base_folder / "config.json")
        base_weights = BaseWeights(base, family, find_weights(base_folder, base, family))
        base = base_weights.base
        recycler_weights, draft_ids = None, None
        if recycler:
            recycler.check_base(base, str(folder / "recycler" / "config.json"))
            recycler_weights = Safetensors([folder / "recycler" / "model.safetensors"])
            recycler_weights.check(recycler.tensor_shapes(base))
            _check_base(recycler.base, base_folder, base_weights)
            if recycler.draft_vocabulary:
                draft_ids = recycler.draft_vocabulary.read(folder / "recycler", base.vocab_size)
        yield cls(folder, base_folder, base, base_weights, recycler, recycler_weights, draft_ids)

    def folders(self) -> list[Path]:
        """Return what a command that reads this checkpoint must not delete.

        That is the checkpoint with its weights, and the user's own folders.
        """
        return [self.folder, self.folder / "recycler", self.base_folder, *self.base_weights.files, *users_folders()]


def base_reference(base_folder: Path, weights: Weights | BaseWeights, *, path: Path | None = None) -> BaseReference:
    """Describe a base so that its module recognises it."""
    return BaseReference.of(base_folder, weights.digest(), path)


def _read_recycler(folder: Path) -> RecyclerConfig | None:
    if not folder.is_dir():
        what = "a file, and no GGUF" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a checkpoint in Hugging Face layout")
    path = folder / "recycler" / "config.json"
    return RecyclerConfig.read(path) if path.parent.exists() else None


def _find_base(folder: Path, recycler: RecyclerConfig | None) -> Path:
    if recycler and recycler.base and recycler.base.path:
        base = folder / recycler.base.path
        if not base.is_dir():
            raise InputError(f"{folder}: its base lies at {base}, which does not exist; put it back or attach again")
        return base
    if not (folder / "config.json").exists():
        refuse_adapter(folder)
        raise InputError(f"{folder}: not a checkpoint; expected config.json and model.safetensors in it")
    return folder


def _check_base(expected: BaseReference | None, base_folder: Path, weights: BaseWeights) -> None:
    if expected is None:
        return
    actual = {"config": sha256(base_folder / "config.json"), "weights": weights.digest()}
    for what, digest in actual.items():
        if (wanted := getattr(expected, f"{what}_sha256")) != digest:
            raise InputError(
                f"{base_folder}: the {what} differ from what this module was made for "
                f"(SHA-256 {digest[:12]}…, expected {str(wanted)[:12]}…); restore the base, or join the module with "
                "this one: recycle-onnx attach BASE OUT --module FOLDER"
            )

"""A module apart from its base: the folder that `publish` writes, laid out as a checkpoint's `recycler/`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.families import describe
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.identity import BaseReference, check_same_base
from recycle_onnx.checkpoint.recycler import FORMAT, RecyclerConfig
from recycle_onnx.checkpoint.sources.hub import HubModel, is_hub_id
from recycle_onnx.checkpoint.weights import Safetensors, Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json

CONFIG, WEIGHTS, CARD, REFERENCE = "config.json", "model.safetensors", "README.md", "reference.safetensors"
"""The files of a module, as `attach`, training and `publish` name them."""
EXPECTED = "expected the folder that `recycle-onnx publish` wrote, or a checkpoint with a module"
OF_A_MODULE = ("num_layers", "tap", "recycle")
"""Fields of its config that no other model's has."""


@dataclass(frozen=True)
class Module:
    """A module apart from its base, with its config; `trained_on` describes its base."""

    folder: Path
    config: RecyclerConfig
    trained_on: BaseReference

    @classmethod
    def find(cls, named: str, revision: str | None = None) -> Module:
        """Open a published folder, a checkpoint's module, or a published module on the hub, by its id.

        Raises:
            InputError: no such folder or model, one that is no module, or that does not say which base it is for.
            RecycleError: the hub cannot be reached.
        """
        path = Path(named)
        if path.exists() or not is_hub_id(named):
            if revision is not None:
                raise InputError(f"--module-revision goes with a hub id such as org/name; {named} is a path")
            return cls.open(path)
        model = HubModel(named, revision)
        _read_config(model.fetch([CONFIG]), named)  # before a whole model is fetched that is no module
        return cls.open(model.fetch([CONFIG, WEIGHTS, CARD, REFERENCE, "draft_vocabulary.json"]))

    @classmethod
    def open(cls, folder: Path) -> Module:
        """Read the module in a published folder or in a checkpoint.

        Raises:
            InputError: as for `find`.
        """
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what}; {EXPECTED}")
        own = folder / "recycler" if (folder / "recycler").is_dir() else folder
        config = _read_config(own, str(folder))
        base = config.trained_on or config.base
        if own != folder and base is not None and not base.describes:
            with Checkpoint.open(folder) as checkpoint:  # of an earlier version; it has the base to look at
                base = base.described_by(checkpoint.base_folder)
        if base is None or not base.describes:
            raise InputError(
                f"{own / CONFIG}: does not describe the base that this module is for; "
                "name the whole checkpoint, or publish it with this version"
            )
        return cls(own, config, base)

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Tell whether `folder` itself is a module's, as `publish` writes them."""
        path = folder / CONFIG
        return path.is_file() and not (folder / "recycler").is_dir() and _is_module_config(read_json(path))

    def base(self) -> BaseConfig:
        """Describe the module's base."""
        assert self.trained_on.config is not None
        return describe(self.trained_on.config, self.folder / CONFIG)[0]

    def weights(self) -> Weights:
        """Open the module's tensors, not yet compared with the config."""
        return Safetensors([self.folder / WEIGHTS])

    def check(self, base: BaseWeights, actual: BaseReference, name: str) -> RecyclerConfig:
        """Refuse another base than the module's, and damaged weights; return the config beside this base.

        `actual` is what the base is recognised by, `name` what to call it.

        Raises:
            InputError: names what differs, or what is damaged.
        """
        described = base.base
        check_same_base(self.trained_on, actual, described, self.folder, name)
        trained_on_these = self.trained_on.weights_sha256
        same = base.weights.has_digest(trained_on_these) or actual.is_copy_of(trained_on_these)
        trained_on = None if same else replace(self.trained_on, path=None)
        # one computation may have two names: llama.cpp calls a Mistral without windows a Llama
        layer = described.model_type if self.config.layer_config is None else self.config.layer
        config = replace(self.config, layer=layer, base=actual, trained_on=trained_on, format=FORMAT)
        config.check_base(described, str(self.folder / CONFIG))
        weights, shapes = self.weights(), config.tensor_shapes(described)
        weights.check(shapes)
        for name in shapes:
            weights.stored(name)  # refuses what is not finite
        if config.draft_vocabulary:
            config.draft_vocabulary.read(self.folder, described.vocab_size)
        return config


def _is_module_config(raw: dict[str, Any]) -> bool:
    return all(name in raw for name in OF_A_MODULE)


def _read_config(folder: Path, named: str) -> RecyclerConfig:
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{named}: not a module (no {CONFIG}); {EXPECTED}")
    raw = read_json(path)
    if not _is_module_config(raw):
        raise InputError(f"{named}: {CONFIG} is not a module's; {EXPECTED}")
    return RecyclerConfig.read(path)

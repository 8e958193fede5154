"""The files of a head: a `config.json`, and safetensors whose names a format knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.sources.hub import HubModel, is_hub_id
from recycle_onnx.checkpoint.weights import Safetensors
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json

PICKLES = ("*.bin", "*.pt", "*.pth")
"""Never opened: to unpickle a stranger's file is to run it."""
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file as save; '
    "save({{k: v.contiguous() for k, v in torch.load('{file}', weights_only=True).items()}}, '{target}')\""
)
"""Torch reads plain tensors without running anything when it is asked to."""


OF_A_HEAD = ["config.json", "*.safetensors", "*.safetensors.index.json"]
"""What is fetched of a head on the hub."""


def head_folder(named: str, revision: str | None = None) -> Path:
    """Return the folder of a head: a path, or what is fetched of a head on the hub, by its id.

    Raises:
        InputError: no such model on the hub, or a revision of a path.
        RecycleError: the hub cannot be reached.
    """
    path = Path(named)
    if path.exists() or not is_hub_id(named):
        if revision is not None:
            raise InputError(f"--module-revision goes with a hub id such as org/name; {named} is a path")
        return path
    return HubModel(named, revision).fetch(OF_A_HEAD)


@dataclass(frozen=True)
class HeadFiles:
    """The opened files of a head; `names` are its tensors by the names that they have in a module."""

    folder: Path
    raw: Mapping[str, Any]
    weights: Safetensors
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> HeadFiles:
        """Open a folder with a `config.json` and safetensors.

        Raises:
            InputError: no such folder, no config, no weights, or weights as a pickle.
        """
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what}; expected a folder with a head's config.json and model.safetensors")
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json; expected a head's folder, with model.safetensors in it too")
        return cls(folder, read_json(folder / "config.json"), _weights(folder))

    @property
    def where(self) -> Path:
        """The config, which messages name."""
        return self.folder / "config.json"

    @property
    def layer_values(self) -> dict[str, Any]:
        """What the config says about the head's layers: all of it, or an object of its own (speculators)."""
        nested = self.raw.get("transformer_layer_config")
        return dict(nested) if isinstance(nested, Mapping) else dict(self.raw)

    @property
    def of_speculators(self) -> bool:
        """Whether the library speculators wrote it."""
        return "speculators_model_type" in self.raw

    def flag(self, name: str) -> bool:
        """Return a value of the config that is true or false, false where there is none.

        Raises:
            InputError: it is something else.
        """
        value = self.raw.get(name, self._eagle().get(name))
        if not isinstance(value, bool | None):
            raise InputError(f"{self.where}: {name} is {value!r:.80}; expected true or false")
        return bool(value)

    def listed(self, name: str) -> list[int] | None:
        """Return a list of whole numbers of the config, or None.

        Raises:
            InputError: it is something else.
        """
        value = self.raw.get(name, self._eagle().get(name))
        if value is not None and not (isinstance(value, list) and all(type(number) is int for number in value)):
            raise InputError(f"{self.where}: {name} is {value!r:.80}; expected a list of whole numbers")
        return value

    def has(self, name: str) -> bool:
        """Tell whether the head has a tensor of this name in a module."""
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor by its name in a module; empty where there is none."""
        return self.weights.shape(self.names[name]) if name in self.names else ()

    def layers(self) -> int:
        """Count the decoder layers."""
        numbers = {name.split(".")[1] for name in self.names if name.startswith("layers.")}
        return len(numbers)

    def numbers(self, name: str) -> NDArray[np.int64] | None:
        """Read a vector of whole numbers by its name in the files; None where there is none.

        Raises:
            InputError: it is no vector, or of floats.
        """
        stored = next((each for each in (name, f"model.{name}") if each in self.weights.names()), None)
        if stored is None:
            return None
        values = self.weights.raw(stored)
        if values.ndim != 1 or values.dtype.kind not in "iub":
            raise InputError(f"{self.weights.where}: {stored} is not a list of whole numbers; the file is damaged")
        return values.astype(np.int64)

    def _eagle(self) -> Mapping[str, Any]:
        nested = self.raw.get("eagle_config")
        return nested if isinstance(nested, Mapping) else {}


def _weights(folder: Path) -> Safetensors:
    """Open the safetensors of a folder, whatever a single one is called."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            command = CONVERT.format(file=pickles[0], target=folder / "model.safetensors")
            raise InputError(
                f"{pickles[0]}: a torch pickle, which may run any code when it is opened; expected safetensors: "
                f"convert with `{command}`"
            )
        raise InputError(f"{folder}: no weights; expected a head's model.safetensors in it")
    return Safetensors.find(folder) if len(files) > 1 else Safetensors(files)

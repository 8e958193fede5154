"""A GGUF file's metadata about its architecture, by the names that llama.cpp gives them."""

from __future__ import annotations

from typing import Any

import numpy as np

from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile
from recycle_onnx.errors import InputError

UNIMPORTANT = {"vocab_size", "rope.dimension_count", "attention.value_length", "tensor_data_layout", "attention.causal",
               "expert_count", "expert_used_count", "rope.scaling.finetuned"}  # fmt: skip
"""Keys that repeat what others say, or say only what is checked elsewhere."""


class Keys:
    """The values of `{architecture}.*`, with a note of which were asked for."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = str(file.metadata.get("general.architecture"))
        self._asked: set[str] = set(UNIMPORTANT)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or one for every layer where the file lists it layer by layer.

        Raises:
            InputError: the layers differ.
        """
        self._asked.add(name)
        value = self.file.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list) and not all(isinstance(part, bool) for part in value):
            if len(set(value)) != 1:
                raise self.error(name, f"differs from layer to layer ({value}); that is not supported")
            value = value[0]
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Return a positive whole number.

        Raises:
            InputError: it is missing, or is none.
        """
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, f"is {value!r}; expected a whole number of at least 1")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Return a positive number; of a float32 the shortest decimal: 1e-05, not 9.99999974e-06.

        Raises:
            InputError: it is missing, or is none.
        """
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < np.inf:
            raise self.error(name, f"is {value!r}; expected a positive number")
        return float(str(np.float32(value)))

    def error(self, name: str, what: str) -> InputError:
        """Make an error about one key."""
        return InputError(f"{self.file.path}: {self.architecture}.{name} {what}")

    def unused(self) -> list[str]:
        """Return keys of the architecture that nobody asked for."""
        prefix = f"{self.architecture}."
        names = [name.removeprefix(prefix) for name in self.file.metadata if name.startswith(prefix)]
        return sorted(set(names) - self._asked)

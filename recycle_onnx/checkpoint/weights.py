"""Files of weights, read one tensor at a time, or some of its rows; safetensors files are one kind of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes  # noqa: F401 -- registers bfloat16, which safetensors needs to hand it to numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from recycle_onnx.checkpoint.base import Shapes
from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256
from recycle_onnx.untrusted import check_regular, copy_file, is_plain_name

FLOAT_TYPES = ("F32", "F16", "BF16")
"""What weights may be stored in; integers and eight-bit floats need scales that a plain file does not have."""
INDEX = "model.safetensors.index.json"
"""What transformers writes beside several files of weights."""
ADAPTER = "adapter_config.json"
"""An adapter has it, and changes to a model in place of the model."""
WRAPPED = {
    "_orig_mod.": "a model compiled by torch.compile; save its `_orig_mod`",
    "module.": "a model wrapped for several devices; save its `module`",
    "base_model.model.": "a model with an adapter; save what `merge_and_unload()` gives",
}
"""Prefixes of tensors' names, and what was saved there instead of the model."""
PICKLES = ("pytorch_model*.bin", "consolidated*.pth")
"""Refused, never opened: to unpickle a stranger's file is to run it."""


ALL = slice(None)
"""All rows of a tensor."""


class FloatTensors(Protocol):
    """Weights by name, as numbers."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor `name`."""
        ...

    def float32(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Read a tensor, or some of its rows."""
        ...


class Tensors(FloatTensors, Protocol):
    """Weights by name, as numbers and as the small integers that a file may hold."""

    def integer_type(self, name: str) -> str | None:
        """Return the file's name for the small integers that hold the tensor; None where it has floats."""
        ...

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read one tensor that has an `integer_type`, or some of its rows, as the file has it."""
        ...


class Weights(ABC):
    """The tensors of files, by the names that transformers gives them."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of all tensors."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""

    @abstractmethod
    def stored_type(self, name: str | None = None) -> str:
        """Return the type that a tensor (the first one) is read in, in safetensors' words: F32, F16 or BF16."""

    @abstractmethod
    def copy_to(self, folder: Path) -> None:
        """Write the weights into `folder` as safetensors; an index that lists them is copied by the caller."""

    @abstractmethod
    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        """Read one tensor, or some of its rows, whether finite or not."""

    @property
    def where(self) -> Path:
        """What messages name: the file, or the folder of several."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    def integer_type(self, name: str) -> str | None:
        """Return the file's name for the small integers that hold the tensor; None where it has floats."""
        return None

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read one tensor that has an `integer_type`, or some of its rows, as the file has it."""
        raise ValueError(f"{name} is not stored as integers")

    def num_parameters(self) -> int:
        """Count the values in all tensors."""
        return sum(int(np.prod(self.shape(name))) for name in self.names())

    def check(self, expected: Shapes) -> None:
        """Compare names, shapes and types with what the config implies.

        Raises:
            InputError: names the first tensor that is missing, or has another shape or type.
        """
        check_shapes(self.where, {name: self.shape(name) for name in self.names()}, expected)
        for name in expected:
            if (kind := self.stored_type(name)) not in FLOAT_TYPES:
                raise InputError(f"{self.where}: {name} is stored as {kind}; expected one of {', '.join(FLOAT_TYPES)}")

    def stored(self, name: str, rows: slice = ALL) -> NDArray[Any]:
        """Read one tensor, or some of its rows, in the type it is stored in (bfloat16 as ml_dtypes' type).

        Raises:
            InputError: a value is not finite.
        """
        array = self._read(name, rows)
        if not np.isfinite(array).all():
            raise InputError(f"{self.where}: {name} holds values that are not finite; the weights are damaged")
        return array

    def float32(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Read one tensor, or some of its rows, as float32; stored float32 values are not rounded."""
        return np.ascontiguousarray(self.stored(name, rows), dtype=np.float32)

    def digest(self) -> str:
        """Return the SHA-256 over the files' own SHA-256, in the order of their names."""
        return self._digest

    def has_digest(self, digest: str) -> bool:
        """Tell whether these very weights have this `digest`, in these files or in those that `copy_to` writes."""
        return digest == self.digest()

    @cached_property
    def _digest(self) -> str:
        """Hashed once: a training asks for it several times, and hundreds of megabytes take a second."""
        return joint_digest(sha256(path) for path in self.files)


def joint_digest(digests: Iterable[str]) -> str:
    """Return the SHA-256 over those of several files."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class _Stored(NamedTuple):
    """The place of a tensor, and what the file's header says about it."""

    path: Path
    shape: tuple[int, ...]
    kind: str


class Safetensors(Weights):
    """The tensors of one safetensors file, or of the shards that an index lists.

    A file is mapped while something is read from it and no longer: mapped pages count as this process's memory.
    """

    def __init__(self, files: list[Path]) -> None:
        """Read the files' headers.

        Raises:
            InputError: a file is missing, truncated or not safetensors.
        """
        super().__init__(files)
        self._tensors: dict[str, _Stored] = {}
        for path in files:
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118 -- not a mapping
                    tensor = file.get_slice(name)
                    self._tensors[name] = _Stored(path, tuple(tensor.get_shape()), str(tensor.get_dtype()))

    @classmethod
    def find(cls, folder: Path) -> Safetensors:
        """Open `model.safetensors`, or the shards of `model.safetensors.index.json`, in `folder`."""
        index = folder / INDEX
        _refuse_pickle(folder)
        refuse_adapter(folder)
        if (folder / "model.safetensors").exists() or not index.exists():
            return cls([folder / "model.safetensors"])
        return cls(_shards(index))

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._tensors[name].shape

    def stored_type(self, name: str | None = None) -> str:
        """Return the type of a tensor (the first one): F32, F16 or BF16."""
        return self._tensors[name or next(iter(self._tensors))].kind

    def copy_to(self, folder: Path) -> None:
        """Copy the files into `folder`."""
        for path in self.files:
            copy_file(path, folder / path.name)

    def raw(self, name: str, *index: slice) -> NDArray[Any]:
        """Read one tensor of any type, or the part of it that `index` names."""
        with _open(self._tensors[name].path) as file:
            array: NDArray[Any] = file.get_slice(name)[index] if index else file.get_tensor(name)
        return array

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        return self.raw(name) if rows == ALL else self.raw(name, rows)


def check_shapes(where: Path, actual: Shapes, expected: Shapes) -> None:
    """Compare the tensors that a file has with what the config implies.

    Raises:
        InputError: names the first tensor that is missing, or has another shape.
    """
    for name, shape in expected.items():
        if name not in actual:
            _refuse_wrapped(where, actual)
            raise InputError(f"{where}: tensor {name!r} is missing; the config implies one of shape {list(shape)}")
        if actual[name] != shape:
            raise InputError(f"{where}: {name} has shape {list(actual[name])}; the config implies {list(shape)}")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected the weights as safetensors") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not safetensors ({error}); fetch or write it again") from error


def _shards(index: Path) -> list[Path]:
    """Return the files that an index lists.

    Raises:
        InputError: the index is damaged, or files are missing.
    """
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, Mapping) or not mapping or not all(isinstance(v, str) for v in mapping.values()):
        raise InputError(f"{index}: expected a 'weight_map' that names the shards")
    if odd := sorted(name for name in set(mapping.values()) if not is_plain_name(name)):
        raise InputError(f"{index}: names the shard {odd[0]!r:.100}; expected names of files beside it")
    shards = [index.parent / name for name in sorted(set(mapping.values()))]
    if missing := [path for path in shards if not path.is_file()]:
        raise InputError(
            f"{missing[0]}: no such file; {len(missing)} of the {len(shards)} shards that {index.name} lists are "
            "missing: fetch them again"
        )
    return shards


def refuse_adapter(folder: Path) -> None:
    """Say what to do about an adapter (LoRA and the like) without its base.

    Raises:
        InputError: it is one.
    """
    if (folder / ADAPTER).exists() and not ((folder / "model.safetensors").exists() or (folder / INDEX).exists()):
        raise InputError(
            f"{folder}: an adapter ({ADAPTER}), such as LoRA's, and not a whole model; name its base, with "
            f"--adapter {folder}, or merge them with peft's `merge_and_unload()` and `save_pretrained`"
        )


def _refuse_wrapped(where: Path, shapes: Shapes) -> None:
    for prefix, what in WRAPPED.items():
        if any(name.startswith(prefix) for name in shapes):
            raise InputError(f"{where}: its tensors' names begin with {prefix!r}: {what} instead")


def _refuse_pickle(folder: Path) -> None:
    """Say what to do about weights in torch's own format, where there are no others."""
    pickles = [path.name for name in PICKLES for path in sorted(folder.glob(name))]
    if pickles and not (folder / INDEX).exists() and not (folder / "model.safetensors").exists():
        raise InputError(
            f"{folder / pickles[0]}: a torch pickle, which may run any code when it is opened; expected safetensors: "
            f'convert with `python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"`, and copy the tokenizer"
        )

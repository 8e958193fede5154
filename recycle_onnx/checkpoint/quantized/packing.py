"""What a format of quantized matrices states, and how integers come out of words of 32 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.weights import Safetensors
from recycle_onnx.errors import InputError

Codes = NDArray[np.uint8]
WORD = 32
BITS = (4, 8)
"""Of a weight, that kernels take at full speed."""


@dataclass(frozen=True)
class Packing(ABC):
    """A way to store matrices [N, K] of `bits` a value, in groups of `group` values of a row; -1: whole rows."""

    bits: int
    group: int

    title: ClassVar[str]
    """The format's name for people."""
    marker: ClassVar[str]
    """The ending of the tensor that tells such a matrix, in the place of `weight`."""
    parts: ClassVar[tuple[str, ...]]
    """The endings of the others that must be there."""
    optional: ClassVar[tuple[str, ...]] = ()
    """The endings of those that may be there."""

    @property
    def kind(self) -> str:
        """The name of what is stored, for reports."""
        groups = "rows" if self.group == -1 else f"groups of {self.group}"
        return f"{self.title}, {self.bits} bits in {groups}"

    @property
    def each(self) -> int:
        """The number of values in a word."""
        return WORD // self.bits

    @property
    def middle(self) -> int:
        """The zero point of matrices that have none of their own."""
        return 1 << (self.bits - 1)

    def groups(self, width: int) -> int:
        """Return the number of groups in a row of `width` values."""
        return 1 if self.group == -1 else -(-width // self.group)

    @abstractmethod
    def shape(self, tensors: Safetensors, module: str) -> tuple[int, int]:
        """Return N and K of a matrix."""

    @abstractmethod
    def check(self, tensors: Safetensors, module: str) -> None:
        """Compare the shapes of a matrix's parts with each other and with the groups.

        Raises:
            InputError: they contradict each other, or columns are in another order than their groups.
        """

    @abstractmethod
    def codes(self, tensors: Safetensors, module: str, rows: slice) -> Codes:
        """Read some rows' integers, [rows, K]."""

    @abstractmethod
    def scales(self, tensors: Safetensors, module: str, rows: slice) -> NDArray[Any]:
        """Read some rows' scales, [rows, groups]."""

    @abstractmethod
    def zeros(self, tensors: Safetensors, module: str, rows: slice) -> Codes | None:
        """Read some rows' zero points, [rows, groups]; None where all are the middle."""

    def expect(self, tensors: Safetensors, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape than the config's bits and groups imply.

        Raises:
            InputError: it has another one.
        """
        if (actual := tensors.shape(name)) != shape:
            raise InputError(
                f"{tensors.where}: {name} has shape {list(actual)}; {self.kind}, implies {list(shape)}: matrices of "
                "mixed bits or groups are not supported"
            )

    def check_order(self, tensors: Safetensors, name: str, width: int) -> None:
        """Refuse columns that belong to groups in another order than they stand in (act-order), if `name` is there.

        Raises:
            InputError: some do.
        """
        if name not in tensors.names():
            return
        self.expect(tensors, name, (width,))
        group = width if self.group == -1 else self.group
        if not np.array_equal(tensors.raw(name), np.arange(width) // group):
            raise InputError(
                f"{tensors.where}: {name} puts columns into groups in another order than they stand (act-order); "
                "expected one without it, or with its order kept within groups (static groups)"
            )


def unpacked(words: NDArray[Any], bits: int, axis: int, order: tuple[int, ...] = ()) -> Codes:
    """Return the integers in words of 32 bits, low bits first, side by side along `axis`.

    `order` names for each of a word's integers the place in which it is stored.
    """
    places = order or tuple(range(WORD // bits))
    shifts = [np.uint32(bits * place) for place in places]
    mask = np.uint32((1 << bits) - 1)
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    parts = np.stack([((unsigned >> shift) & mask).astype(np.uint8) for shift in shifts], axis=axis + 1)
    shape = list(unsigned.shape)
    shape[axis] *= len(places)
    return parts.reshape(shape)


class QuantizationFields:
    """The fields of a `quantization_config`, read one by one."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.raw, self.path = raw, path

    def wrong(self, name: str, expected: str) -> InputError:
        """Make the error for a value that is not supported."""
        method = self.raw.get("quant_method")
        value = self.raw.get(name)
        return InputError(
            f"{self.path}: quantization_config of {method}: {name} {value!r:.100} is not supported; "
            f"expected {expected}; or take the original in float32, float16 or bfloat16"
        )

    def must_be(self, name: str, *expected: object) -> None:
        """Refuse any value but the `expected` ones and none."""
        if self.raw.get(name) is not None and self.raw[name] not in expected:
            raise self.wrong(name, " or ".join(map(repr, expected)) or "none")

    def bits(self, name: str, choices: tuple[int, ...] = BITS) -> int:
        """Return the bits of a weight."""
        value = self.raw.get(name)
        if type(value) is not int or value not in choices:
            raise self.wrong(name, " or ".join(map(str, choices)))
        return value

    def group(self, name: str) -> int:
        """Return the size of a group: -1, or what blocks of the kernels can be put together to."""
        value = self.raw.get(name)
        if type(value) is not int or (value != -1 and (value < 16 or value % 16)):
            raise self.wrong(name, "-1, or a multiple of 16")
        return value

"""Weights next to a graph, written one tensor at a time so that memory stays near the largest one."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ALIGNMENT = 4096
"""A page: ONNX Runtime maps an aligned tensor instead of copying it."""


Place = tuple[str, int | None]
"""Where a tensor lies: its file and offset."""


def place(tensor: ir.ExternalTensor) -> Place:
    """The same for tensors that share their bytes, in whichever graph."""
    return (str(tensor.path), tensor.offset)


def read_tensor(tensor: ir.ExternalTensor) -> NDArray[Any]:
    """A stored tensor, read into memory of its own.

    (Not mapped: pages of a mapped file count as this process's memory until someone needs them.)
    """
    count = int(np.prod(tensor.shape.numpy(), dtype=np.int64))
    array = np.fromfile(tensor.path, tensor.dtype.numpy(), count, offset=tensor.offset or 0)
    return array.reshape(tensor.shape.numpy())


class ExternalDataWriter:
    """Appends tensors to one file and gives references to put into graphs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, ir.ExternalTensor] = {}
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, name: str, array: NDArray[Any]) -> ir.ExternalTensor:
        """Append `array` under `name`."""
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        # not `tofile`: it loses bytes without an error when the disk is full
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        tensor = ir.ExternalTensor(
            self.path.name,
            offset,
            array.nbytes,
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self.path.parent,
        )
        self.tensors[name] = tensor
        return tensor

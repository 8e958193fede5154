"""Weights next to a graph, written one after the other so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ALIGNMENT = 4096
"""A page: ONNX Runtime maps an aligned tensor instead of copying it."""


class ExternalDataWriter:
    """Appends tensors to one file and gives references to put into graphs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, name: str, pieces: Iterable[NDArray[Any]]) -> ir.ExternalTensor:
        """Append a tensor under `name`, given as consecutive parts of its first axis."""
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        offset, rows = self._file.tell(), 0
        for piece in pieces:
            # not `tofile`: it loses bytes without an error when the disk is full
            self._file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            rows += len(piece)
        return ir.ExternalTensor(
            self.path.name,
            offset,
            self._file.tell() - offset,
            ir.DataType.from_numpy(piece.dtype),
            shape=ir.Shape((rows, *piece.shape[1:])),
            name=name,
            base_dir=self.path.parent,
        )

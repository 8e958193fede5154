"""Weights next to a graph, written one after the other so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

PAGE, LARGE = 4096, 1 << 20
"""What large tensors start on a multiple of, as ONNX advises for readers that map tensors, and from how many bytes on
one is large (as onnx_ir and ONNX Runtime draw the line). ONNX Runtime maps from the page before a tensor, so that small
ones need none; pages for all were 0.8 % of an int4 model of 135 M parameters."""
ALIGNMENT = 64
"""What every tensor starts on a multiple of: a cache line, no less than the widest vector."""


class ExternalDataWriter:
    """A writer that appends tensors to one file and gives references to put into graphs."""

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
        """Append a tensor under `name`, given as consecutive parts of its first axis.

        The first part tells whether it is large: what comes in parts comes in parts of megabytes.
        """
        pieces = iter(pieces)
        first = next(pieces)
        self._file.write(b"\0" * (-self._file.tell() % (PAGE if first.nbytes >= LARGE else ALIGNMENT)))
        offset, rows = self._file.tell(), 0
        for piece in chain([first], pieces):
            # not `tofile`: it loses bytes without an error when the disk is full
            self._file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            rows += len(piece)
        return ir.ExternalTensor(
            self.path.name,
            offset,
            self._file.tell() - offset,
            ir.DataType.from_numpy(first.dtype),
            shape=ir.Shape((rows, *first.shape[1:])),
            name=name,
            base_dir=self.path.parent,
        )

"""The tensors of a base that somebody quantized, its matrices under the names that they had in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.integers import Integers
from recycle_onnx.checkpoint.quantized.awq import Awq
from recycle_onnx.checkpoint.quantized.compressed import Compressed
from recycle_onnx.checkpoint.quantized.gptq import Gptq
from recycle_onnx.checkpoint.quantized.packing import Packing
from recycle_onnx.checkpoint.weights import ALL, FLOAT_TYPES, Safetensors, Weights
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, write_json

CONFIG = "quantization_config"
FORMATS: dict[str, Callable[[Mapping[str, Any], Path], Packing]] = {
    "gptq": Gptq.read,
    "awq": Awq.read,
    "compressed-tensors": Compressed.read,
}
"""By the `quant_method` of a config."""
BLOCK_SIZES = (64, 32, 16)
"""Of the kernels, the largest first; a group is one of them, or several with the same scale."""
LARGEST = {4: 32, 8: 64}
"""Blocks by bits: the largest in which runs on one token round as longer ones do.

Activations are rounded block by block too, so that smaller blocks lose less. Groups of 64 in 4 bits, written as blocks
of 32: +0.24 % of perplexity, not +0.52 %, for 8 % more bytes and 11 % more time of a token (SmolLM2-135M-Instruct).
"""


def opened(folder: Path, raw: Mapping[str, Any], tensors: Safetensors) -> Weights:
    """Return the weights of the base in `folder` with the config `raw`: `tensors` themselves where they are floats.

    Raises:
        InputError: they are quantized in a way that is not supported, or contradict the config.
    """
    quantization = raw.get(CONFIG)
    if not quantization:
        return tensors
    path = folder / "config.json"
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    if not isinstance(method, str) or method not in FORMATS:
        raise InputError(
            f"{path}: {CONFIG}: quant_method {method!r:.100} is not supported; expected {', '.join(FORMATS)}; or take "
            "the original in float32, float16 or bfloat16"
        )
    return QuantizedWeights(tensors, FORMATS[method](quantization, path))


def without_quantization(folder: Path) -> None:
    """Take out of the config in `folder` what it says about quantized weights: those beside it are floats now."""
    path = folder / "config.json"
    config = read_json(path)
    if config.pop(CONFIG, None):
        write_json(path, config)


class QuantizedWeights(Weights):
    """Matrices as integers in groups, whatever the format packs them in, and the other tensors as they are."""

    def __init__(self, tensors: Safetensors, packing: Packing) -> None:
        """Find and check the quantized matrices.

        Raises:
            InputError: there are none, one lacks a part, or its parts contradict each other or the config.
        """
        super().__init__(tensors.files)
        self._tensors, self._packing = tensors, packing
        present, marker = tensors.names(), f".{packing.marker}"
        modules = sorted(name.removesuffix(marker) for name in present if name.endswith(marker))
        if not modules:
            raise InputError(
                f"{tensors.where}: no tensor ends with {marker!r}; the config says that weights are {packing.kind}"
            )
        for module in modules:
            self._check(module)
        endings = (packing.marker, *packing.parts, *packing.optional)
        hidden = {f"{module}.{ending}" for module in modules for ending in endings}
        self._modules = {f"{module}.weight": module for module in modules}
        self._others = present - hidden
        self._zeros = cache(lambda module: packing.zeros(tensors, module, ALL))

    def names(self) -> set[str]:
        """Return the names of all tensors, quantized matrices under those that they had in float."""
        return self._others | self._modules.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        module = self._modules.get(name)
        return self._tensors.shape(name) if module is None else self._packing.shape(self._tensors, module)

    def stored_type(self, name: str | None = None) -> str:
        """Return the type that a tensor (the first one that is not quantized) is read in; quantized ones in F32."""
        if name is None:
            name = next(iter(sorted(self._others)), None)
        return "F32" if name is None or name in self._modules else self._tensors.stored_type(name)

    def integer_type(self, name: str) -> str | None:
        """Return what a quantized matrix is stored as."""
        return self._packing.kind if name in self._modules else None

    def integers(self, name: str, rows: slice = ALL) -> Integers:
        """Read a quantized matrix, or some of its rows, in blocks that the kernels take.

        Raises:
            InputError: a scale is not finite.
        """
        packing, module = self._packing, self._modules[name]
        codes = packing.codes(self._tensors, module, rows)
        scales = np.ascontiguousarray(packing.scales(self._tensors, module, rows), dtype=np.float32)
        if not np.isfinite(scales).all():
            raise InputError(f"{self.where}: {name} holds scales that are not finite; the weights are damaged")
        zeros = self._zeros(module)
        group = self._group_of_blocks(codes.shape[1])
        return Integers(
            packing.kind,
            1 << packing.bits,
            packing.middle,
            np.ascontiguousarray(codes),
            scales[:, group],
            zeros=None if zeros is None else np.ascontiguousarray(zeros[rows][:, group]),
        )

    def copy_to(self, folder: Path) -> None:
        """Copy the files into `folder`, quantized as they are."""
        self._tensors.copy_to(folder)

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        if name not in self._modules:
            return self._tensors.stored(name, rows)
        return self.integers(name, rows).values()

    def _check(self, module: str) -> None:
        tensors, packing = self._tensors, self._packing
        for part in packing.parts:
            if f"{module}.{part}" not in tensors.names():
                raise InputError(
                    f"{self.where}: tensor '{module}.{part}' is missing, which belongs to '{module}.{packing.marker}'"
                )
        for part in (packing.marker, *packing.parts):
            name = f"{module}.{part}"
            shape, kind = tensors.shape(name), tensors.stored_type(name)
            kinds = FLOAT_TYPES if "scale" in part else ("I64",) if part == "weight_shape" else ("I32",)
            if len(shape) != (1 if part == "weight_shape" else 2) or kind not in kinds:
                raise InputError(
                    f"{self.where}: {name} has shape {list(shape)} and type {kind}; {packing.kind}, has a matrix of "
                    f"{' or '.join(kinds)} there"
                )
        packing.check(tensors, module)
        width = packing.shape(tensors, module)[1]
        if not width or width % BLOCK_SIZES[-1]:
            raise InputError(
                f"{self.where}: {module} has rows of {width} values; expected a multiple of {BLOCK_SIZES[-1]}"
            )

    def _group_of_blocks(self, width: int) -> NDArray[np.intp]:
        """Return for each block of a row of `width` values the group that it lies in."""
        packing = self._packing
        whole = gcd(width, width if packing.group == -1 else packing.group)
        size = next(size for size in BLOCK_SIZES if size <= LARGEST[packing.bits] and whole % size == 0)
        starts = np.arange(0, width, size)
        return starts // (width if packing.group == -1 else packing.group)

"""Folders as those who quantize models write them, packed as their libraries do it.

GPTQ: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda.py, `pack`; GPTQModel 7.7, `pack_original` (version 2).
AWQ: AutoAWQ 0.2.9, modules/linear/gemm.py, `from_linear`.
compressed-tensors: 0.20.1, compressors/pack_quantized/helpers.py, `pack_to_int32`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 -- makes numpy know bfloat16
import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Grouped(NamedTuple):
    """Integers [N, K], and for each group of a row a zero point and a scale [N, groups]."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    group: int

    def values(self) -> np.ndarray:
        """The matrix in float32, which holds every product of such a scale and a small integer exactly."""
        index = np.arange(self.codes.shape[1]) // self.group
        centred = (self.codes - self.zeros[:, index]).astype(np.float32)
        return self.scales.astype(np.float32)[:, index] * centred


class Way(NamedTuple):
    """A way to quantize and to store."""

    method: str
    bits: int = 4
    group: int = 32
    symmetric: bool = False
    version: int = 1
    scales: str = "float16"

    def __str__(self) -> str:
        zeros = "" if self.symmetric else ", zeros"
        return f"{self.method}{'' if self.version == 1 else self.version} {self.bits} bits, {self.group}{zeros}"

    def config(self) -> dict[str, Any]:
        """The `quantization_config`."""
        if self.method == "gptq":
            return {
                "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "desc_act": False,
                "sym": self.symmetric, "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            }  # fmt: skip
        if self.method == "awq":
            return {
                "quant_method": "awq", "bits": self.bits, "group_size": self.group, "zero_point": True,
                "version": "gemm", "modules_to_not_convert": None,
            }  # fmt: skip
        by_row = self.group == -1
        weights = {
            "num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False, "actorder": None,
            "strategy": "channel" if by_row else "group", "group_size": None if by_row else self.group,
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        }  # fmt: skip

    def grouped(self, matrix: np.ndarray) -> Grouped:
        """Round a matrix [N, K] to nearest; the last group may be shorter."""
        width = matrix.shape[1]
        group = width if self.group == -1 else self.group
        padded = np.pad(matrix, [(0, 0), (0, -width % group)]).reshape(len(matrix), -1, group).astype(np.float32)
        top, middle = (1 << self.bits) - 1, 1 << (self.bits - 1)
        low, high = np.minimum(padded.min(-1), 0), np.maximum(padded.max(-1), 0)
        scales = 2 * np.maximum(-low, high) / top if self.symmetric else (high - low) / top
        scales = scales.astype(self.scales)
        zeros = np.full(scales.shape, middle) if self.symmetric else np.rint(-low / scales.astype(np.float32))
        zeros = np.clip(zeros, 1 if self.version == 1 and self.method == "gptq" else 0, top).astype(np.int64)
        codes = np.clip(np.rint(padded / scales.astype(np.float32)[..., None]) + zeros[..., None], 0, top)
        return Grouped(codes.reshape(len(matrix), -1)[:, :width].astype(np.int64), zeros, scales, group)

    def pack(self, module: str, grouped: Grouped) -> Tensors:
        """The tensors that stand for one matrix."""
        packed = {"gptq": self._gptq, "awq": self._awq, "compressed-tensors": self._compressed}[self.method](grouped)
        return {f"{module}.{name}": np.ascontiguousarray(value) for name, value in packed.items()}

    def _gptq(self, grouped: Grouped) -> Tensors:
        zeros = grouped.zeros.T - (2 - self.version)
        return {
            "qweight": _words(grouped.codes.T, self.bits, 0),
            "qzeros": _words(zeros, self.bits, 1),
            "scales": grouped.scales.T,
            "g_idx": (np.arange(grouped.codes.shape[1]) // grouped.group).astype(np.int32),
        }

    def _awq(self, grouped: Grouped) -> Tensors:
        codes, zeros = (
            part.T.reshape(part.shape[1], -1, 8)[:, :, AWQ_ORDER].reshape(part.shape[1], -1)
            for part in (grouped.codes, grouped.zeros)
        )
        return {"qweight": _words(codes, 4, 1), "qzeros": _words(zeros, 4, 1), "scales": grouped.scales.T}

    def _compressed(self, grouped: Grouped) -> Tensors:
        packed = {
            "weight_packed": _words(grouped.codes, self.bits, 1),  # signed integers plus the middle
            "weight_scale": grouped.scales,
            "weight_shape": np.array(grouped.codes.shape, np.int64),
        }
        return packed if self.symmetric else {**packed, "weight_zero_point": _words(grouped.zeros, self.bits, 0)}


def _words(integers: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Pack integers along an axis into words of 32 bits, low bits first, zeros behind the last."""
    each = 32 // bits
    moved = np.moveaxis(integers, axis, -1)
    padded = np.pad(moved, [(0, 0), (0, -moved.shape[-1] % each)]).astype(np.uint32)
    words = np.zeros((len(padded), padded.shape[1] // each), np.uint32)
    for column in range(words.shape[1]):
        for place in range(each):
            words[:, column] |= padded[:, column * each + place] << np.uint32(bits * place)
    return np.moveaxis(words, -1, axis).view(np.int32) if axis else np.ascontiguousarray(words.T).view(np.int32)


def write_quantized(
    folder: Path, base: Path, way: Way, wanted: Callable[[str], bool] = lambda name: name.endswith("_proj")
) -> tuple[Path, dict[str, Grouped]]:
    """The base with the matrices of the `wanted` modules quantized; also what stands for each of them."""
    shutil.copytree(base, folder)
    tensors, made = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(".weight") and wanted(name.removesuffix(".weight"))]:
        module = name.removesuffix(".weight")
        made[name] = way.grouped(np.asarray(tensors.pop(name), np.float32))
        tensors |= way.pack(module, made[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": way.config()}))
    return folder, made

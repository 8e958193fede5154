"""GPTQ, as AutoGPTQ and GPTQModel pack it (nn_modules/qlinear, `pack_original`).

`qweight` i32 [K / 8, N] has columns' integers side by side in a word, `qzeros` i32 [groups, N / 8] the zero points,
`scales` [groups, N]; `g_idx` i32 [K] the group of each column. Files of version 1 have zero points minus one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.quantized.packing import Codes, Packing, QuantizationFields, unpacked
from recycle_onnx.checkpoint.weights import ALL, Safetensors
from recycle_onnx.errors import InputError

VERSIONS = {"gptq": 1, "gptq_v2": 2}
"""By their names in a config, and what they store zero points minus."""


@dataclass(frozen=True)
class Gptq(Packing):
    """GPTQ of a version: 1 stores zero points minus one."""

    version: int = 1

    title: ClassVar[str] = "GPTQ"
    marker: ClassVar[str] = "qweight"
    parts: ClassVar[tuple[str, ...]] = ("qzeros", "scales")
    optional: ClassVar[tuple[str, ...]] = ("g_idx",)

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> Gptq:
        """Read a `quantization_config`.

        Raises:
            InputError: bits, groups, version or rules for single modules that are not supported.
        """
        fields = QuantizationFields(raw, path)
        name = "checkpoint_format" if raw.get("checkpoint_format") is not None else "format"
        fields.must_be(name, *VERSIONS)
        fields.must_be("pack_dtype", "int32")
        rules = raw.get("dynamic") or {}
        if not isinstance(rules, Mapping) or any(not str(rule).startswith("-:") for rule in rules):
            raise fields.wrong("dynamic", "one kind of groups for all matrices")
        return cls(fields.bits("bits"), fields.group("group_size"), VERSIONS[raw.get(name) or "gptq"])

    def shape(self, tensors: Safetensors, module: str) -> tuple[int, int]:
        words, rows = tensors.shape(f"{module}.qweight")
        return rows, words * self.each

    def check(self, tensors: Safetensors, module: str) -> None:
        rows, width = self.shape(tensors, module)
        groups = self.groups(width)
        self.expect(tensors, f"{module}.scales", (groups, rows))
        self.expect(tensors, f"{module}.qzeros", (groups, -(-rows // self.each)))
        self.check_order(tensors, f"{module}.g_idx", width)

    def codes(self, tensors: Safetensors, module: str, rows: slice) -> Codes:
        return unpacked(tensors.raw(f"{module}.qweight", ALL, rows), self.bits, axis=0).T

    def scales(self, tensors: Safetensors, module: str, rows: slice) -> NDArray[Any]:
        return tensors.raw(f"{module}.scales", ALL, rows).T

    def zeros(self, tensors: Safetensors, module: str, rows: slice) -> Codes | None:
        stored = unpacked(tensors.raw(f"{module}.qzeros"), self.bits, axis=1)[:, : self.shape(tensors, module)[0]]
        if self.version == 1:
            if stored.max() == (1 << self.bits) - 1:
                raise InputError(
                    f"{tensors.where}: {module}.qzeros holds a zero point that version 1 of GPTQ cannot state, and "
                    "libraries read it differently; expected checkpoint_format 'gptq_v2'"
                )
            stored = stored + np.uint8(1)
        return None if (stored == self.middle).all() else stored[:, rows].T

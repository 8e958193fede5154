"""AWQ, as AutoAWQ packs it for its kernel GEMM (awq/utils/packing_utils.py, awq/modules/linear/gemm.py).

`qweight` i32 [K, N / 8] and `qzeros` i32 [groups, N / 8] have the integers of rows side by side in a word, in the order
0, 2, 4, 6, 1, 3, 5, 7; `scales` is [groups, N].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from recycle_onnx.checkpoint.quantized.packing import Codes, Packing, QuantizationFields, unpacked
from recycle_onnx.checkpoint.weights import ALL, Safetensors

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in a word of each of eight rows that follow each other."""


@dataclass(frozen=True)
class Awq(Packing):
    """AWQ for the kernel GEMM."""

    title: ClassVar[str] = "AWQ"
    marker: ClassVar[str] = "qweight"
    parts: ClassVar[tuple[str, ...]] = ("qzeros", "scales")

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> Awq:
        """Read a `quantization_config`.

        Raises:
            InputError: bits, groups or a kernel that is not supported.
        """
        fields = QuantizationFields({name: str(v).lower() if name == "version" else v for name, v in raw.items()}, path)
        for name in ("version", "format", "checkpoint_format"):
            fields.must_be(name, "gemm")
        fields.must_be("backend", "autoawq", "auto")
        fields.must_be("zero_point", True)
        name = "bits" if "bits" in raw else "w_bit"
        return cls(fields.bits(name, (4,)), fields.group("group_size" if "group_size" in raw else "q_group_size"))

    def shape(self, tensors: Safetensors, module: str) -> tuple[int, int]:
        width, words = tensors.shape(f"{module}.qweight")
        return words * self.each, width

    def check(self, tensors: Safetensors, module: str) -> None:
        rows, width = self.shape(tensors, module)
        groups = self.groups(width)
        self.expect(tensors, f"{module}.scales", (groups, rows))
        self.expect(tensors, f"{module}.qzeros", (groups, rows // self.each))

    def codes(self, tensors: Safetensors, module: str, rows: slice) -> Codes:
        return self._rows(tensors, f"{module}.qweight", self.shape(tensors, module)[0], rows)

    def scales(self, tensors: Safetensors, module: str, rows: slice) -> NDArray[Any]:
        return tensors.raw(f"{module}.scales", ALL, rows).T

    def zeros(self, tensors: Safetensors, module: str, rows: slice) -> Codes | None:
        count = self.shape(tensors, module)[0]
        stored = self._rows(tensors, f"{module}.qzeros", count, ALL)
        return None if (stored == self.middle).all() else stored[rows]

    def _rows(self, tensors: Safetensors, name: str, count: int, rows: slice) -> Codes:
        """Read the words that hold some rows, and return those rows."""
        start, stop, _ = rows.indices(count)
        first = start // self.each
        words = tensors.raw(name, ALL, slice(first, -(-stop // self.each)))
        integers = unpacked(words, self.bits, axis=1, order=PLACES)
        return integers[:, start - first * self.each : stop - first * self.each].T

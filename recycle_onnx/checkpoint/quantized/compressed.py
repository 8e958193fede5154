"""compressed-tensors' format pack-quantized (compressed_tensors/compressors/pack_quantized): W4A16 and W8A16.

`weight_packed` i32 [N, K / 8] has a row's integers side by side in words, plus the middle; `weight_scale` is [N,
groups], `weight_zero_point` i32 [N / 8, groups] packed along the rows, `weight_shape` i64 [2] N and K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from recycle_onnx.checkpoint.quantized.packing import Codes, Packing, QuantizationFields, unpacked
from recycle_onnx.checkpoint.weights import Safetensors
from recycle_onnx.errors import InputError

FORMAT = "pack-quantized"


@dataclass(frozen=True)
class Compressed(Packing):
    """compressed-tensors' packed integers, with zero points of their own unless `symmetric`."""

    symmetric: bool = True

    title: ClassVar[str] = "compressed-tensors"
    marker: ClassVar[str] = "weight_packed"
    parts: ClassVar[tuple[str, ...]] = ("weight_scale", "weight_shape")
    optional: ClassVar[tuple[str, ...]] = ("weight_zero_point", "weight_g_idx")

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> Compressed:
        """Read a `quantization_config`.

        Raises:
            InputError: another format, several kinds of groups, or activations that are quantized too.
        """
        fields = QuantizationFields(raw, path)
        fields.must_be("format", FORMAT)
        for name in ("kv_cache_scheme", "transform_config"):
            fields.must_be(name, {})
        sparsity = raw.get("sparsity_config")
        if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format") == "dense"):
            raise fields.wrong("sparsity_config", "none")
        schemes = _schemes(raw, fields)
        weights = schemes[0]
        if any(other != weights for other in schemes):
            raise fields.wrong("config_groups", "one kind of groups for all matrices, not mixed ones")
        return cls._of(QuantizationFields({"quant_method": raw.get("quant_method"), **weights}, path))

    @classmethod
    def _of(cls, fields: QuantizationFields) -> Compressed:
        fields.must_be("type", "int")
        fields.must_be("dynamic", False)
        fields.must_be("strategy", "group", "channel")
        by_row = fields.raw.get("strategy") == "channel" or fields.raw.get("group_size") == -1
        symmetric = fields.raw.get("symmetric", True)
        return cls(fields.bits("num_bits"), -1 if by_row else fields.group("group_size"), symmetric is True)

    def shape(self, tensors: Safetensors, module: str) -> tuple[int, int]:
        rows, words = tensors.shape(f"{module}.weight_packed")
        name = f"{module}.weight_shape"
        self.expect(tensors, name, (2,))
        stated = tuple(map(int, tensors.raw(name)))
        if stated[0] != rows or -(-stated[1] // self.each) != words:
            raise InputError(
                f"{tensors.where}: {name} says {list(stated)}, but {self.bits} bits in [{rows}, {words}] words do not "
                "hold that"
            )
        return rows, stated[1]

    def check(self, tensors: Safetensors, module: str) -> None:
        rows, width = self.shape(tensors, module)
        groups = self.groups(width)
        self.expect(tensors, f"{module}.weight_scale", (rows, groups))
        if not self.symmetric:
            name = f"{module}.weight_zero_point"
            if name not in tensors.names():
                raise InputError(f"{tensors.where}: tensor {name!r} is missing, which belongs to the matrix's integers")
            self.expect(tensors, name, (-(-rows // self.each), groups))
        self.check_order(tensors, f"{module}.weight_g_idx", width)

    def codes(self, tensors: Safetensors, module: str, rows: slice) -> Codes:
        width = self.shape(tensors, module)[1]
        return unpacked(tensors.raw(f"{module}.weight_packed", rows), self.bits, axis=1)[:, :width]

    def scales(self, tensors: Safetensors, module: str, rows: slice) -> NDArray[Any]:
        return tensors.raw(f"{module}.weight_scale", rows)

    def zeros(self, tensors: Safetensors, module: str, rows: slice) -> Codes | None:
        if self.symmetric:
            return None
        stored = unpacked(tensors.raw(f"{module}.weight_zero_point"), self.bits, axis=0)
        stored = stored[: self.shape(tensors, module)[0]]
        return None if (stored == self.middle).all() else stored[rows]


def _schemes(raw: Mapping[str, Any], fields: QuantizationFields) -> list[dict[str, Any]]:
    """Return what each group of modules has for its weights, without what does not change the result."""
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise fields.wrong("config_groups", "the scheme of the quantized modules")
    schemes = []
    for scheme in groups.values():
        weights = scheme.get("weights") if isinstance(scheme, Mapping) else None
        if not isinstance(weights, Mapping):
            raise fields.wrong("config_groups", "a scheme of weights")
        if scheme.get("input_activations") or scheme.get("output_activations"):
            raise fields.wrong("config_groups", "weights alone quantized (W4A16, W8A16), and activations not")
        if scheme.get("format") not in (None, FORMAT):
            raise fields.wrong("config_groups", f"the format {FORMAT}")
        names = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic")
        schemes.append({name: weights.get(name) for name in names})
    return schemes

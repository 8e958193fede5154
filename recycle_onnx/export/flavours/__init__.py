"""What a graph may consist of: ONNX Runtime's own operators too (`ort`), or those of ONNX only (`standard`).

A flavour is all that knows about operators which the other one lacks. Families, halves and the runtime do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import Quantization
from recycle_onnx.export.flavours.ort import OrtGraph
from recycle_onnx.export.flavours.ort_quantizer import OrtQuantizer
from recycle_onnx.export.flavours.standard import StandardGraph
from recycle_onnx.export.flavours.standard_quantizer import StandardQuantizer
from recycle_onnx.export.graph import DecoderGraph
from recycle_onnx.export.half_precision import HalfPrecision, HalfPrecisionRewriter
from recycle_onnx.export.quantize_graph import GraphQuantizer, Made
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.progress import Progress

Precision = Quantization | HalfPrecision


@dataclass(frozen=True)
class Flavour:
    """A set of operators, with the builder and the quantizer of graphs in it."""

    name: str
    graph: type[DecoderGraph]
    quantizer: type[GraphQuantizer]

    def suited(self, how: Precision) -> Precision:
        """Return the precision with eight bits where the flavour cannot have four."""
        if not isinstance(how, Quantization) or how.bits != 4:
            return how
        keep = how.keep or ()
        return replace(how, keep=(*keep, *(part for part in self.quantizer.eight_bits if part not in keep)))

    def rewriter(
        self,
        how: Precision | None,
        report: Progress,
        made: Made = MappingProxyType({}),
        vectors: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    ) -> Rewriter:
        """Make what stores weights in this precision; None is float32.

        `made` are matrices that are quantized already, and `vectors` take the place of those of the same names.
        """
        if how is None:
            return Rewriter(report)
        if isinstance(how, HalfPrecision):
            return HalfPrecisionRewriter(report)
        return self.quantizer(how, report, made, vectors)


ORT = Flavour("ort", OrtGraph, OrtQuantizer)
STANDARD = Flavour("standard", StandardGraph, StandardQuantizer)
FLAVOURS = {flavour.name: flavour for flavour in (ORT, STANDARD)}
"""By the name in manifests and on the command line."""


def flavour_named(name: str) -> Flavour:
    """Return the flavour of that name.

    Raises:
        InputError: there is none.
    """
    if name not in FLAVOURS:
        raise InputError(f"flavour {name!r} is not known; expected one of: {', '.join(FLAVOURS)}")
    return FLAVOURS[name]

"""A float32 graph to a float16 one, for GPUs: weights, activations and caches; logits stay float32.

Quantized graphs too can have activations and caches in float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.contract import LOGITS, FloatType
from recycle_onnx.errors import InputError
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.rewriter import Rewriter

LARGEST = float(np.finfo(np.float16).max)
"""Beyond it a weight would become infinite: such a model is refused."""


@dataclass(frozen=True)
class HalfPrecision:
    """A precision of weights, activations and caches in float16."""

    bits: int = 16

    @property
    def precision(self) -> str:
        """The bundle's precision."""
        return "fp16"

    @property
    def float_type(self) -> FloatType:
        """The type of hidden states and caches."""
        return "float16"


class HalfPrecisionRewriter(Rewriter):
    """A rewriter that stores all weights as float16, and gives graphs float16 inputs, values and outputs."""

    doing = "rounding"

    def rewrite(self, graph: ir.Graph, writer: ExternalDataWriter) -> None:
        """Store the weights, then change all types.

        Raises:
            InputError: a weight is beyond float16's range.
        """
        super().rewrite(graph, writer)
        to_half_precision(graph)

    def convert(self, name: str, piece: NDArray[Any]) -> NDArray[Any]:
        """Round a piece that is float32 to float16."""
        return rounded(name, piece)


def rounded(name: str, piece: NDArray[Any]) -> NDArray[Any]:
    """Return some of the weight `name`, as float16 where it is float32.

    Raises:
        InputError: it is beyond float16's range.
    """
    if piece.dtype != np.float32:
        return piece
    if (largest := float(np.abs(piece).max())) > LARGEST:
        raise InputError(
            f"{name} holds {largest:.3g}; float16 ends at {LARGEST:.0f}: use fp32, or int8 with activations in fp32"
        )
    return piece.astype(np.float16)


def to_half_precision(graph: ir.Graph) -> None:
    """Change all types of a graph whose weights are stored, and constants with them."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float16), name=value.name)
        _halve(value)
    for node in graph.all_nodes():
        for output in node.outputs:
            _halve(output)
    for value in graph.inputs:
        _halve(value)
    _cast_to_float32(graph, next(value for value in graph.outputs if value.name == LOGITS))


def _halve(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.dtype = ir.DataType.FLOAT16


def _cast_to_float32(graph: ir.Graph, logits: ir.Value) -> None:
    """Put a Cast behind the node that gives the logits; the graph's output keeps name and shape."""
    node = logits.producer()
    assert node is not None
    half = ir.Value(name=f"{LOGITS}.float16", shape=logits.shape, type=ir.TensorType(ir.DataType.FLOAT16))
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name="node_logits_float32")
    # The old value becomes the inner one: its producer keeps it, and the new one takes over the output's name.
    position = list(graph.outputs).index(logits)
    logits.name = half.name
    logits.dtype = ir.DataType.FLOAT16
    cast.replace_input_with(0, logits)
    new = cast.outputs[0]
    new.name, new.shape, new.type = LOGITS, logits.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, cast)
    graph.outputs[position] = new

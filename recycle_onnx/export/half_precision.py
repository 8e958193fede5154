"""A float32 graph to a float16 one, for GPUs: weights, activations and caches; logits stay float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from recycle_onnx.contract import LOGITS
from recycle_onnx.errors import InputError
from recycle_onnx.export.external_data import ExternalDataWriter, Place, place, read_tensor
from recycle_onnx.export.report import Report

LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfPrecision:
    """Weights, activations and caches in float16."""

    bits: int = 16

    @property
    def precision(self) -> str:
        """The bundle's precision."""
        return "fp16"


class HalfPrecisionRewriter:
    """Rewrites the graphs of a bundle one after the other; what they share is stored once."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._stored: dict[Place, ir.ExternalTensor] = {}

    def rewrite(self, model: ir.Model, writer: ExternalDataWriter) -> None:
        """Store all weights as float16 in `writer`'s file, and give the graph float16 inputs, values and outputs.

        Raises:
            InputError: a weight is beyond float16's range.
        """
        graph = model.graph
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = self._store(value.const_value, writer)
                value.dtype = value.const_value.dtype
            elif value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
                value.dtype = value.const_value.dtype
        for node in graph:
            for output in node.outputs:
                _halve(output)
        for value in graph.inputs:
            _halve(value)
        _cast_to_float32(graph, next(value for value in graph.outputs if value.name == LOGITS))

    def _store(self, tensor: ir.ExternalTensor, writer: ExternalDataWriter) -> ir.ExternalTensor:
        where = place(tensor)
        if where not in self._stored:
            self.report(f"rounding {writer.path.stem}: {tensor.name}")
            array = read_tensor(tensor)
            if array.dtype == np.float32:
                if (largest := float(np.abs(array).max())) > LARGEST:
                    raise InputError(
                        f"{tensor.name} holds {largest:.3g}; float16 ends at {LARGEST:.0f}: use fp32 or int8"
                    )
                array = array.astype(np.float16)
            self._stored[where] = writer.write(str(tensor.name), array)
        return self._stored[where]


def _halve(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.dtype = ir.DataType.FLOAT16


def _cast_to_float32(graph: ir.Graph, logits: ir.Value) -> None:
    """Put a Cast behind the node that gives the logits; the graph's output keeps name and shape."""
    node = logits.producer()
    assert node is not None
    half = ir.Value(name=f"{LOGITS}.float16", shape=logits.shape, type=ir.TensorType(ir.DataType.FLOAT16))
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name="node_logits_float32")
    position = list(graph.outputs).index(logits)
    logits.name = half.name
    logits.dtype = ir.DataType.FLOAT16
    cast.replace_input_with(0, logits)
    new = cast.outputs[0]
    new.name, new.shape, new.type = LOGITS, logits.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, cast)
    graph.outputs[position] = new

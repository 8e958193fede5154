"""Nodes in the making, in a graph or in a branch of it, and the constants that they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

MICROSOFT = "com.microsoft"
Make = Callable[..., ir.Value]
"""What adds nodes to a tape, its first argument, and returns the last one's value."""


class GraphTape(Tape):
    """Nodes of a graph; constants become its initializers, from wherever they are read."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        """Make nodes for `graph`; `name` begins the names of what is in its branches."""
        super().__init__()
        self.graph, self.name = graph, name

    def microsoft(self, name: str, inputs: Sequence[ir.Value | None], **attributes: int | float) -> ir.Value:
        """Add one of ONNX Runtime's own operators."""
        return self.op(name, inputs, attributes, domain=MICROSOFT)

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Return an initializer, made where there is none of that name."""
        name = f"int8_cache.{name}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            kind = ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        """Return a constant i64 vector."""
        return self.constant("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float, dtype: type[np.generic] = np.float32) -> ir.Value:
        """Return a constant scalar."""
        return self.constant(f"{np.dtype(dtype).name}.{value!r}", np.array(value, dtype))

    def either(self, name: str, condition: ir.Value, then: Make, other: Make) -> ir.Value:
        """Add a choice between two ways to compute one value; each is given a tape of its own."""
        ways = {"then_branch": self._body(f"{name}.then.", then), "else_branch": self._body(f"{name}.else.", other)}
        return self.op("If", [condition], ways)

    def each(self, name: str, inputs: Sequence[ir.Value], make: Make) -> ir.Value:
        """Compute a value for every element of the first axis of `inputs`, one after the other, and stack them.

        `make` is given a tape, and an element of each input.
        """
        body = self._body(f"{name}.each.", make, [ir.Value() for _ in inputs])
        return self.op("Scan", inputs, {"body": body, "num_scan_inputs": len(inputs)})

    def _body(self, name: str, make: Make, inputs: Sequence[ir.Value] = ()) -> ir.Graph:
        """Return a graph of what `make` adds, which may read all that was made before."""
        tape = GraphTape(self.graph, self.name + name)
        made = make(tape, *inputs)
        values = [*inputs, *(output for node in tape.nodes for output in node.outputs)]
        for place, value in enumerate(values):  # a name of its own: it must not be one of the graphs around it
            value.name = value.name or f"{tape.name}{place}"
        return ir.Graph(inputs, [made], nodes=tape.nodes, name=f"{tape.name}graph")

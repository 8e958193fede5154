"""A float32 graph in pieces, a layer each, which run one after the other: one layer's weights are in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, LOGITS, GraphSpec
from recycle_onnx.export.lazy import LazyWeight
from recycle_onnx.export.quantize_graph import PRODUCTS
from recycle_onnx.runtime.ort.sessions import session_options

Floats = NDArray[np.float32]
State = dict[str, NDArray[Any]]
"""Values between two pieces, by name: what the later ones read."""
LAYER = re.compile(r"\.(\d+)\.")
"""The layer's number in the name of a product's weight."""


@dataclass(frozen=True)
class Product:
    """A product: its weight's name, the value it is multiplied with, and whether the weight is [K, N]."""

    weight: str
    x: str
    transposed: bool

    def matrix(self, stored: Floats) -> Floats:
        """Return the weight [N, K] of the weight as the graph reads it, or the other way round."""
        return stored.T if self.transposed else stored


class Segment:
    """The nodes of a graph between two cuts. Matrices are inputs, so that another one may take a matrix's place."""

    def __init__(self, nodes: Sequence[ir.Node], read_later: set[str], model: ir.Model) -> None:
        self._nodes, self._model = nodes, model
        used = {str(value.name): value for node in nodes for value in _inputs(node)}
        made = [str(value.name) for node in nodes for value in node.outputs]
        self.products = [product for node in nodes if (product := product_of(node))]
        self.matrices = {
            name: value.const_value for name, value in used.items() if isinstance(value.const_value, LazyWeight)
            and len(value.const_value.shape) == 2 and value.const_value.dtype == ir.DataType.FLOAT
        }  # fmt: skip
        self._constants = {
            name: value.const_value
            for name, value in used.items()
            if value.const_value is not None and name not in self.matrices and name not in made
        }
        self.reads = [name for name in used if name not in {*made, *self.matrices, *self._constants}]
        self.writes = [name for name in made if name in read_later]
        self._read_later = read_later
        self._sessions: dict[bool, ort.InferenceSession] = {}

    @property
    def multiplied(self) -> list[str]:
        """The values that matrices are multiplied with."""
        return list(dict.fromkeys(product.x for product in self.products))

    def load(self) -> dict[str, Floats]:
        """Read the matrices, as the graph reads them."""
        return {name: weight.numpy() for name, weight in self.matrices.items()}

    def run(self, state: State, matrices: Mapping[str, Floats], threads: int | None) -> State:
        """Run the piece; return what later pieces read of it."""
        return self._run(state, matrices, threads, self.writes, moments=False)

    def moments(
        self, state: State, matrices: Mapping[str, Floats], threads: int | None
    ) -> tuple[State, dict[str, Floats]]:
        """Run the piece; also return the sums of products XᵀX [K, K] of each value that a matrix multiplies."""
        names = {_moments_of(x): x for x in self.multiplied}
        values = self._run(state, matrices, threads, [*self.writes, *names], moments=True)
        return {name: values[name] for name in self.writes}, {x: values[name] for name, x in names.items()}

    def behind(self, state: State, new: State) -> State:
        """Return the state for the next piece, without values that no later piece reads."""
        return {name: value for name, value in {**state, **new}.items() if name in self._read_later}

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()

    def _run(
        self, state: State, matrices: Mapping[str, Floats], threads: int | None, names: list[str], *, moments: bool
    ) -> State:
        feeds = {**{name: state[name] for name in self.reads}, **matrices}
        if moments not in self._sessions:
            self._sessions[moments] = self._open(feeds, threads, names, moments=moments)
        return dict(zip(names, self._sessions[moments].run(names, feeds), strict=True))

    def _open(self, feeds: State, threads: int | None, outputs: list[str], *, moments: bool) -> ort.InferenceSession:
        nodes = [ir.serde.serialize_node(node) for node in self._nodes]
        for x in self.multiplied if moments else []:
            rows = f"{x}.rows"  # [B, S, K] to [B·S, K]
            nodes.append(helper.make_node("Flatten", [x], [rows], axis=2))
            nodes.append(helper.make_node("Gemm", [rows, rows], [_moments_of(x)], transA=1))
        graph = helper.make_graph(
            nodes,
            "segment",
            [_declared(name, array) for name, array in feeds.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in self._constants.items()],
        )
        imports = [helper.make_opsetid(*item) for item in self._model.opset_imports.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=self._model.ir_version)
        options = session_options(threads, "off")  # matrices are inputs: there is nothing to prepack
        # What a run returns lies in the arena, and an arena goes back whole: as long as any state of this piece is
        # there, so would be all that the piece ever needed, 0.7 GB a layer of TinyLlama's shape. It is no faster.
        options.enable_cpu_mem_arena = False
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def beginning(spec: GraphSpec, ids: NDArray[np.int64]) -> State:
    """Return the state before the first piece: token ids [n, length], with nothing before them."""
    empty = np.zeros((len(ids), spec.num_kv_heads, 0, spec.head_dim), np.float32)
    return {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), **dict.fromkeys(spec.past_names(), empty)}


def cut(model: ir.Model, keep: Sequence[str] = ()) -> list[Segment]:
    """Cut a full model's graph into pieces: what comes before the first layer, each layer, and the head.

    A piece begins with the first product of its layer; the norm before it belongs to the piece before. Values that
    nothing reads, as keys and values for a later call, are not kept, but for logits and those named in `keep`.
    """
    pieces: list[list[ir.Node]] = [[]]
    layer = None
    for node in model.graph:
        if product := product_of(node):
            own = LAYER.search(product.weight)
            number = own and own[1]
            if number != layer:
                pieces.append([])
                layer = number
        pieces[-1].append(node)
    later, segments = {LOGITS, *keep}, []
    for nodes in reversed(pieces):
        segments.append(Segment(nodes, set(later), model))
        later |= {str(value.name) for node in nodes for value in _inputs(node)}
    return segments[::-1]


def _inputs(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads of its graph, in branches of an If too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            own = {value for each in inner for value in each.outputs} | set(inner.initializers.values())
            yield from (value for each in inner for value in _inputs(each) if value not in own)


def product_of(node: ir.Node) -> Product | None:
    """Return the product with a matrix that is a weight; None where the node is none."""
    if node.op_type not in PRODUCTS:
        return None
    x, weight = node.inputs[:2]
    if x is None or weight is None or not isinstance(weight.const_value, LazyWeight):
        return None
    return (
        Product(str(weight.name), str(x.name), node.op_type == "MatMul") if len(weight.const_value.shape) == 2 else None
    )


def _moments_of(x: str) -> str:
    return f"{x}.moments"


def _declared(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    """Declare an input of an array's type, with no more said of its shape than its rank."""
    axes = [f"{name}.{axis}" for axis in range(array.ndim)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), axes)

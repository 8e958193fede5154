"""What all graphs share: inputs and outputs by contract, constants, weights, products and rotary tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from recycle_onnx import __version__
from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.checkpoint.base import Layer, Rope
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import DROPPED_ROWS, LOGITS_TO_KEEP, GraphSpec, Tensor
from recycle_onnx.export.lazy import LazyWeight, of_array, of_products

OnnxModel = ir.Model
"""What builders return, by a name for rooms that build no graphs."""
INT64_MAX = int(np.iinfo(np.int64).max)
"""The end of a slice that goes to the end."""
TYPES = {"int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT}

Projected = tuple[ir.Value, ...]
"""Queries, keys and values [B, S, heads·D]: one value with all three side by side, or three."""
Cache = tuple[ir.Value, ir.Value]
"""Keys and values [B, K, rows, D] of a layer."""


class DecoderGraph(ABC):
    """A graph under construction. A flavour (`export/flavours`) adds what depends on the operators it may use."""

    opsets: ClassVar[dict[str, int]]
    ir_version: ClassVar[int]

    def __init__(self, spec: GraphSpec, config: BaseConfig) -> None:
        self.spec, self.config = spec, config
        self.graph = ir.Graph([], [], nodes=[], opset_imports=dict(self.opsets), name=spec.kind)
        self.builder = GraphBuilder(self.graph)
        self.op = self.builder.op
        self._constants: dict[str, ir.Value] = {}
        self._tables: dict[Rope, tuple[ir.Value, ir.Value]] = {}
        self.inputs = {name: self._input(name, tensor) for name, tensor in spec.inputs().items()}
        optional = {name: self._optional_input(name, tensor) for name, tensor in spec.optional_inputs().items()}
        self.keep, self.dropped = optional[LOGITS_TO_KEEP], optional.get(DROPPED_ROWS)

    def _input(self, name: str, tensor: Tensor) -> ir.Value:
        value: ir.Value = self.builder.input(name, TYPES[tensor.dtype], list(tensor.shape))
        return value

    def _optional_input(self, name: str, tensor: Tensor) -> ir.Value:
        """Add an initializer that is listed as an input too: 0 unless the caller says otherwise."""
        value = self._input(name, tensor)
        value.const_value = ir.tensor(np.array(0, np.int64), name=name)
        self.graph.initializers[name] = value
        return value

    @property
    @abstractmethod
    def positions(self) -> ir.Value:
        """Positions [B, S] of the tokens of this call."""

    @abstractmethod
    def add_norm(self, x: ir.Value, delta: ir.Value, parameters: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
        """Build the base's norm, of those weights (and bias), of x + delta; and the sum itself."""

    @abstractmethod
    def attend(self, query: Projected, layer: Layer, past: Cache) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rotate queries and keys, append to the cache, attend: output [B, S, heads·D], present key and value."""

    @abstractmethod
    def rotated(self, query: Projected, rope: Rope) -> Projected:
        """Rotate queries and keys [B, S, heads·D] where the attention cannot do it itself; values stay as they are."""

    @abstractmethod
    def rows_product(self, x: ir.Value, table: ir.Value) -> ir.Value:
        """Build x [B, S, H] times each row of a table [V, H]: [B, S, V]."""

    def norm(self, x: ir.Value, parameters: list[ir.Value]) -> ir.Value:
        """Build the base's kind of norm over the last axis of x."""
        config = self.config.norm
        operator = self.op.RMSNormalization if config.kind == "rms" else self.op.LayerNormalization
        normalised: ir.Value = operator(x, *parameters, axis=-1, epsilon=config.eps)
        return normalised

    def window(self, layer: Layer) -> int | None:
        """Return how many rows a layer sees, None for all: its buffers may have dropped those before."""
        return _window(layer, self.config)

    def split(self, packed: ir.Value) -> Projected:
        """Split into queries, keys and values, each by itself."""
        config = self.config
        keys = config.num_kv_heads * config.head_dim
        sizes = self.ints(config.num_heads * config.head_dim, keys, keys)
        return tuple(self.op.Split(packed, sizes, axis=-1, _outputs=3))

    def rotary_tables(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """Return cosines and sines [context, rotated / 2] of a rotary embedding, one pair for layers that share it."""
        if rope not in self._tables:
            name = f"rope.{len(self._tables)}" if self._tables else "rope"
            # In float64, rounded once at the end: late positions have large angles, of which float32 keeps few digits.
            angles = np.outer(np.arange(self.config.context_length), rope.frequencies)
            cos, sin = (rope.factor * function(angles) for function in (np.cos, np.sin))
            self._tables[rope] = (
                self.weight(of_array(f"{name}.cos", cos.astype(np.float32))),
                self.weight(of_array(f"{name}.sin", sin.astype(np.float32))),
            )
        return self._tables[rope]

    def real(self, value: float) -> ir.Value:
        """Return a constant f32 scalar."""
        return self._constant(f"float.{value!r}", np.array(value, np.float32))

    def scaled(self, x: ir.Value, factor: float) -> ir.Value:
        """Build x · factor; x itself where the factor is 1."""
        return x if factor == 1 else self.op.Mul(x, self.real(factor))

    def capped(self, x: ir.Value, cap: float | None) -> ir.Value:
        """Build cap · tanh(x / cap); x itself where there is no cap."""
        return x if cap is None else self.scaled(self.op.Tanh(self.scaled(x, 1 / cap)), cap)

    def ints(self, *values: int) -> ir.Value:
        """Return a constant i64 vector."""
        return self._constant("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: int) -> ir.Value:
        """Return a constant i64 scalar."""
        return self._constant(f"int.{value}", np.array(value, np.int64))

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        name = f"constant.{name}"
        if name not in self._constants:
            self._constants[name] = self.builder.initializer(ir.tensor(array, name=name), name)
        return self._constants[name]

    def weight(self, weight: LazyWeight) -> ir.Value:
        """Return an initializer under the weight's name, made where it was not used before."""
        name = str(weight.name)
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value: ir.Value = self.builder.initializer(weight, name)
        return value

    def linear(
        self,
        x: ir.Value,
        weights: Tensors,
        *names: str,
        store_as: str | None = None,
        bias: bool = False,
        scale: float = 1.0,
    ) -> ir.Value:
        """Build x [B, S, in] times the [out, in] matrices `names`, side by side in one product; plus their biases.

        The weights are multiplied by `scale` as they are stored.
        """
        name = store_as or names[0]
        y: ir.Value = self.op.MatMul(x, self.weight(of_products(name, weights, names, scale)))
        if bias:
            vector = np.concatenate([weights.float32(_bias(part)) for part in names]) * np.float32(scale)
            y = self.op.Add(y, self.weight(of_array(_bias(name), vector)))
        return y

    def finish(self, outputs: list[ir.Value]) -> ir.Model:
        """Declare the outputs as the contract names and shapes them."""
        for value, (name, tensor) in zip(outputs, self.spec.outputs().items(), strict=True):
            value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(TYPES[tensor.dtype])
            self.builder.add_output(value, name)
        return ir.Model(
            self.graph, ir_version=self.ir_version, producer_name="recycle-onnx", producer_version=__version__
        )


def windows_of(config: BaseConfig) -> tuple[int | None, ...]:
    """Return the rows that each layer sees, None for all; nothing where all layers see all."""
    windows = tuple(_window(layer, config) for layer in config.layers)
    return windows if any(windows) else ()


def _window(layer: Layer, config: BaseConfig) -> int | None:
    return None if layer.window is None or layer.window >= config.context_length else layer.window


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"

"""Factors for the columns of matrices, with which their blocks round better, folded into what comes before them.

The columns of a block share a scale. One column with large values makes the steps of all others coarse, and one whose
input is large makes every step count for more. So the columns are multiplied by factors, and what gives their inputs
is divided by them: a norm, or the rows of the matrix whose outputs are multiplied with an activation. The model stays
the function that it was (as in AWQ, Lin et al. 2023, and in cross-layer equalization, Nagel et al. 2019).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from recycle_onnx.export.block_quantizer import Blocks, Quantization, dequantize, quantize
from recycle_onnx.export.calibrated.gptq import Inputs
from recycle_onnx.export.calibrated.segments import product_of
from recycle_onnx.export.lazy import LazyWeight

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Names = tuple[str, ...]
NORMS = {
    "RMSNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
"""Operators whose output is their weight times something, plus a bias: which inputs those are."""
WORTH = 0.9
"""Factors are kept where they leave less than this part of the error of rounding. Values of a file that was quantized
before lie on a grid, which factors would move them off: there GPTQ loses what this estimate says is gained, up to 5 %.
"""
OF_INPUTS = 0.1
"""What an input's mean square counts for, because activations are rounded to 8 bits in blocks too. In a model of 135 M
parameters one layer's down projection erred by that more than by its own 4 bits: an input that others tell almost
wholly, but that is large. By 0.03 to 0.3 no other layer gets worse by more than 1 %."""
STEPS, PACE, FARTHEST = 10, 0.125, 0.3
"""Steps from the formula on, how far one goes at first by the difference of two shares, and at most, in logarithms. In
a model of 135 M parameters ten leave 4 % less error of GPTQ than none, as do twenty and gradient descent."""
LARGEST = 32.0
"""What a factor may be away from the mean of its matrix, so that float16 holds what is divided by it."""


@dataclass(frozen=True)
class Folding:
    """Factors by the names of a graph's weights: `columns` f32 [K] of matrices [N, K], `rows` f32 [N] of any weight."""

    columns: Mapping[str, Floats] = field(default_factory=dict)
    rows: Mapping[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, factors: Mapping[str, Floats], model: ir.Model, before: Mapping[str, Names]) -> Folding:
        """Return the factors of weights for `factors` of values, by the values' names; `before` are their `origins`."""
        products = [product for node in model.graph if (product := product_of(node))]
        columns = {product.weight: factors[product.x] for product in products if product.x in factors}
        return cls(columns, {name: np.float32(1) / factors[x] for x in factors for name in before[x]})

    def applied(self, name: str, array: Floats) -> Floats:
        """Return the weight `name`, a matrix [N, K] or a vector, times its factors."""
        if name in self.columns:
            array = array * self.columns[name]
        if name in self.rows:
            array = array * self.rows[name].reshape(-1, *[1] * (array.ndim - 1))
        return array

    def vectors(self, weights: Mapping[str, LazyWeight]) -> dict[str, Floats]:
        """Return the vectors that have factors, times these."""
        stored = {name: weights[name] for name in self.rows if len(weights[name].shape) == 1}
        return {name: self.applied(name, vector.numpy()) for name, vector in stored.items()}

    def scaled(self, weight: str, blocks: Blocks, rows: slice) -> Blocks:
        """Return some rows of a matrix, rounded with its columns' factors, times those of the rows."""
        factors = self.rows.get(weight)
        return blocks if factors is None else blocks._replace(scales=blocks.scales * factors[rows, None])


def origins(model: ir.Model, matrices: Collection[str]) -> dict[str, Names]:
    """Return the weights that can be divided so that a value is, by the names of values for which there are such.

    `matrices` are the names of those that may be changed; no other may read the value.
    """
    by_value = {}
    for node in model.graph:
        x = node.inputs[0] if _weight(node) in matrices else None
        if x is None or x.is_graph_output() or not all(_weight(usage.node) in matrices for usage in x.uses()):
            continue
        if names := _before(x, matrices):
            by_value[str(x.name)] = names
    return by_value


def _before(x: ir.Value, matrices: Collection[str]) -> Names:
    """Return the weight and the bias of the norm that gives a value, or the matrix whose outputs an activation takes.

    There are none where another node reads them too, or where the value comes from something else.
    """
    node = x.producer()
    if node is None or x is not node.outputs[0]:
        return ()
    if node.op_type in NORMS:
        vectors = [node.inputs[place] for place in NORMS[node.op_type] if place < len(node.inputs)]
        names = [str(vector.name) for vector in vectors if vector is not None and _is_own(vector)]
        return tuple(names) if len(names) == sum(vector is not None for vector in vectors) else ()
    if node.op_type == "Mul":
        producers = [factor.producer() for factor in node.inputs if factor is not None and len(factor.uses()) == 1]
        names = [_weight(before) for before in producers if before is not None and len(before.inputs) == 2]
        return tuple(name for name in names if name in matrices)[:1]
    return ()


def _weight(node: ir.Node) -> str:
    """Return the name of the matrix that a node multiplies its first input with; empty where it does no such thing."""
    product = product_of(node)
    return product.weight if product else ""


def _is_own(value: ir.Value) -> bool:
    """Tell whether a value is a weight that a single node reads."""
    return isinstance(value.const_value, LazyWeight) and len(value.uses()) == 1


def column_factors(matrices: Sequence[Floats], inputs: Inputs, how: Quantization) -> Floats | None:
    """Return factors [K] for the columns of matrices [N, K] that read the same `inputs`; None where they do no good.

    The error of a block is about the square of its range, times what its columns weigh: how much of an input the
    others cannot make up for, and a part of all of it, for inputs are rounded to 8 bits. With column values of size r
    and weights w, multiplied by f, that is the product of the sums of r²f² and of w/f² over the block, which is least
    where f⁴ = w / r². As a range is set by the largest values alone, some steps from there on follow the range itself.
    """
    weight = 1 / np.square(np.diagonal(inputs.upper).astype(np.float64)) + OF_INPUTS * np.diagonal(inputs.moments)
    squares = sum(np.square(matrix).sum(0, dtype=np.float64) for matrix in matrices)
    squares = np.maximum(squares, 1e-9 * squares.mean() or 1.0)  # a column of zeros
    logs = np.log(weight / squares) / 4
    for step in range(STEPS):
        factors = np.exp(logs - logs.mean())
        of_error = _shares(weight / np.square(factors), how.block_size)
        of_range = _shares(_ranges(matrices, factors, how.block_size), how.block_size)
        change = PACE * (1 - step / STEPS) * how.block_size * (of_error - of_range)
        logs += np.clip(change, -FARTHEST, FARTHEST)
    logs = np.clip(logs - logs.mean(), -np.log(LARGEST), np.log(LARGEST))
    factors = np.exp(logs).astype(np.float32)
    error = sum(_error(matrix * factors, weight / np.square(factors), how) for matrix in matrices)
    return factors if error < WORTH * sum(_error(matrix, weight, how) for matrix in matrices) else None


def _ranges(matrices: Sequence[Floats], factors: Doubles, size: int) -> Doubles:
    """Return the sums of squared ranges of blocks, by the columns [K] that set their ends.

    An end counts by its part of the range: so by how much that grows with the column's factor.
    """
    total = np.zeros(len(factors))
    first = np.arange(0, len(factors), size)
    for matrix in matrices:
        blocks = (matrix * factors.astype(np.float32)).reshape(len(matrix), -1, size)
        top, bottom = blocks.argmax(-1), blocks.argmin(-1)
        high, low = (np.take_along_axis(blocks, end[..., None], -1)[..., 0] for end in (top, bottom))
        high, low = np.maximum(high, 0), np.minimum(low, 0)  # zero lies in every range
        for end, part in ((top, high), (bottom, -low)):
            total += np.bincount((end + first).ravel(), ((high - low) * part).ravel(), len(factors))
    return total


def _shares(values: Doubles, size: int) -> Doubles:
    """Return what part of its block's sum each value [K] is."""
    blocks = values.reshape(-1, size)
    shares: Doubles = blocks / np.maximum(blocks.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
    return shares.ravel()


def _error(matrix: Floats, weight: Doubles, how: Quantization) -> float:
    """Return the squared error of rounding to nearest, by columns that weigh so much."""
    nearest = replace(how, method="rtn")
    difference = dequantize(quantize(matrix, nearest), nearest) - matrix
    return float(np.square(difference).sum(0, dtype=np.float64) @ weight)

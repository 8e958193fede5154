"""The products of attention over eight bits: queries with keys, and probabilities with values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from recycle_onnx.export.int8_cache.run_nodes import RunNodes, Seen
from recycle_onnx.export.int8_cache.tape import GraphTape

KEY_ZERO = 128
"""What stands for 0 among keys."""
QUERY_MOST = 64
"""Largest rounded query: two products with keys of up to 255 are less than 2^15, where x86 without VNNI saturates."""
HIGH, LOW_MOST = 255, 126
"""Steps of a probability of 1, and of one such step; two products of the latter with values of 127 are below 2^15."""
LOW_ZERO = LOW_MOST // 2
"""What stands for 0 where a probability was rounded up."""


@dataclass(frozen=True)
class Operands:
    """What is multiplied, for each KV head: S rows of G query heads, and the R rows of a cache.

    `queries` int8 [1, K, S·G, D] in `steps` [1, K, 1, S·G]; `keys` uint8 and `values` int8 [1, K, R, D], the latter in
    `value_steps` [1, K, 1, D]. Scores s are bounded to softcap · tanh(s / softcap) unless that is 0.
    """

    queries: ir.Value
    steps: ir.Value
    keys: ir.Value
    values: ir.Value
    value_steps: ir.Value
    softcap: float = 0.0


def attended(tape: GraphTape, run: RunNodes, seen: Seen, of: Operands) -> ir.Value:
    """Build probabilities times values, [1, K, S·G, D] of all heads at once, and in a long run [K, 1, S·G, D].

    Scores of a long run, written out, are megabytes, and several operators pass over them. There heads
    come one after the other: scores of one stay in the processor's cache meanwhile. Both ways give the same bits.
    """
    return tape.either(
        "attended", run.is_long, lambda own: _by_heads(own, seen, of), lambda own: _at_once(own, seen, of)
    )


def _at_once(tape: GraphTape, seen: Seen, of: Operands) -> ir.Value:
    keys, values = of.keys, of.values
    if seen.window > 0:
        keys, values = (tape.op("Slice", [rows, seen.first, seen.end, tape.ints(2)]) for rows in (keys, values))
    columns = tape.op("Transpose", [of.queries], {"perm": [0, 1, 3, 2]})
    product = _bounded(tape, _scores(tape, keys, columns, of.steps), of.softcap)
    scores = tape.op("Transpose", [product], {"perm": [0, 1, 3, 2]})
    return _weighted(tape, tape.op("Add", [scores, seen.hidden]), values, of.value_steps)


def _by_heads(tape: GraphTape, seen: Seen, of: Operands) -> ir.Value:
    tail = tape.op("Sub", [seen.tail, seen.first])

    def head(
        own: GraphTape, queries: ir.Value, steps: ir.Value, keys: ir.Value, values: ir.Value, value_steps: ir.Value
    ) -> ir.Value:
        keys, values = (own.op("Slice", [rows, seen.first, seen.end, own.ints(1)]) for rows in (keys, values))
        columns = own.op("Transpose", [queries], {"perm": [0, 2, 1]})
        product = _bounded(own, _scores(own, keys, columns, steps), of.softcap)  # [1, rows, S·G]
        shown = own.op("Add", [own.op("Slice", [product, tail, own.ints(_FAR), own.ints(1)]), seen.hidden])
        masked = own.op("TensorScatter", [product, shown, tail], {"axis": 1})  # in place
        return _weighted(own, own.op("Transpose", [masked], {"perm": [0, 2, 1]}), values, value_steps)

    parts = (of.queries, of.steps, of.keys, of.values, of.value_steps)
    heads = [tape.op("Squeeze", [tape.op("Unsqueeze", [part, tape.ints(2)]), tape.ints(0)]) for part in parts]
    return tape.each("heads", heads, head)


_FAR = np.iinfo(np.int64).max


def _scores(tape: GraphTape, keys: ir.Value, columns: ir.Value, steps: ir.Value) -> ir.Value:
    """Build scores [.., rows, S·G] of `columns` [.., D, S·G]."""
    zeros = tape.scalar(KEY_ZERO, np.uint8), tape.scalar(0, np.int8)
    return tape.microsoft("MatMulIntegerToFloat", [keys, columns, tape.scalar(1.0), steps, *zeros])


def _bounded(tape: GraphTape, scores: ir.Value, softcap: float) -> ir.Value:
    if not softcap:
        return scores
    bounded = tape.op("Tanh", [tape.op("Mul", [scores, tape.scalar(1 / softcap)])])
    return tape.op("Mul", [bounded, tape.scalar(softcap)])


def _weighted(tape: GraphTape, scores: ir.Value, values: ir.Value, value_steps: ir.Value) -> ir.Value:
    """Build probabilities [.., S·G, rows] times values, as two products: in steps, and what those leave."""
    weights = tape.op("Softmax", [scores], {"axis": -1})
    step, small = tape.scalar(1 / HIGH), tape.scalar(1 / (HIGH * LOW_MOST))
    none, low_zero = tape.scalar(0, np.uint8), tape.scalar(LOW_ZERO, np.uint8)
    high = tape.op("QuantizeLinear", [weights, step, none])
    left = tape.op("Sub", [weights, tape.op("DequantizeLinear", [high, step, none])])
    low = tape.op("QuantizeLinear", [left, small, low_zero])
    zero = tape.scalar(0, np.int8)
    products = (
        tape.microsoft("MatMulIntegerToFloat", [x, values, steps, value_steps, zeros, zero])
        for x, steps, zeros in ((high, step, none), (low, small, low_zero))
    )
    return tape.op("Add", [*products])

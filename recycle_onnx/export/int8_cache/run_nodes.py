"""What layers of a graph read of a run: where its rows go, their positions, and which keys they see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS
from recycle_onnx.export.int8_cache.tape import GraphTape

LONG = 16
"""Most rows of a run whose heads are multiplied at once, as fits few rows best."""
SUMMED = 64
"""Columns that ONNX Runtime sums up at once: to leave out so many that no query sees changes no bit."""


class QueryForm(NamedTuple):
    """What decides which keys a query sees: query heads of a KV head, and rows that they look back, -1 for all."""

    group: int
    window: int


@dataclass(frozen=True)
class Seen:
    """The keys that a run's queries see, among the rows `first` … `end` of a cache.

    `hidden` is added to scores: 0 where a query sees a key, minus infinity elsewhere. In a run that is not long it is
    [S·G, rows], over all of a cache where there is no window. In a long one it is [rows, S·G] from row `tail` on: what
    lies before, all queries see. The three are i64 [1].
    """

    window: int
    first: ir.Value
    end: ir.Value
    tail: ir.Value
    hidden: ir.Value


class RunNodes(GraphTape):
    """The nodes that are made once, before the first layer."""

    def __init__(
        self, graph: ir.Graph, past: ir.Value, forms: Iterable[QueryForm], dropped: ir.Value | None = None
    ) -> None:
        """Read a run's size from its tokens, and the text's length from the mask; `past` is any of the layers' caches.

        Those have `dropped` so many of their first rows, none where nothing is given.
        """
        super().__init__(graph, "int8_cache.run." if dropped is None else "int8_cache.run.windows.")
        inputs = {str(value.name): value for value in graph.inputs}
        length = self.op("ReduceSum", [inputs[ATTENTION_MASK], self.ints(1)], {"keepdims": 0})
        count = self.op("Shape", [inputs[INPUT_IDS]], {"start": 1, "end": 2})
        self.positions = self.op("Unsqueeze", [_range(self, self.op("Sub", [length, count]), length), self.ints(0)])
        if dropped is not None:
            length = self.op("Sub", [length, dropped])
        self.start = self.op("Sub", [length, count])  # [1]
        self.is_long = self.op("Squeeze", [self.op("Greater", [count, self.ints(LONG)])])
        self._queries = _range(self, self.start, length)
        self._rows = self.op("Shape", [past], {"start": 2, "end": 3})
        self._end = self.op("Min", [self._whole(self.op("Add", [length, self.ints(SUMMED - 1)])), self._rows])
        self.seen = {form: self._seen(form) for form in sorted(set(forms))}

    def _seen(self, form: QueryForm) -> Seen:
        first, tail, end = self.ints(0), self.start, self._rows
        if form.window > 0:
            oldest = self.op("Add", [self.start, self.ints(1 - form.window)])
            first = tail = self._whole(self.op("Max", [oldest, self.ints(0)]))
            end = self._end
        by_head = self.op("Expand", [self.op("Unsqueeze", [self._queries, self.ints(1)]), self.ints(1, form.group)])
        queries = self.op("Reshape", [by_head, self.ints(-1)])  # [S·G]

        def long(tape: GraphTape) -> ir.Value:
            keys = tape.op("Unsqueeze", [_range(tape, tail, self._end), self.ints(1)])
            return _hidden(tape, keys, queries, form.window)

        def short(tape: GraphTape) -> ir.Value:
            rows = tape.op("Unsqueeze", [queries, self.ints(1)])
            return _hidden(tape, _range(tape, first, end), rows, form.window)

        hidden = self.either(f"hidden.{form.group}.{form.window}", self.is_long, long, short)
        return Seen(form.window, first, self._end, tail, hidden)

    def _whole(self, rows: ir.Value) -> ir.Value:
        """Leave out what is beyond the last whole number of `SUMMED` rows."""
        return self.op("Mul", [self.op("Div", [rows, self.ints(SUMMED)]), self.ints(SUMMED)])


def _range(tape: GraphTape, first: ir.Value, end: ir.Value) -> ir.Value:
    ends = [tape.op("Squeeze", [value]) for value in (first, end)]
    return tape.op("Range", [*ends, tape.scalar(1, np.int64)])


def _hidden(tape: GraphTape, keys: ir.Value, queries: ir.Value, window: int) -> ir.Value:
    """Build 0 for each key, by its position, that a query of a position sees, and minus infinity for others."""
    seen = tape.op("LessOrEqual", [keys, queries])
    if window > 0:
        first = tape.op("Sub", [queries, tape.scalar(window, np.int64)])
        seen = tape.op("And", [seen, tape.op("Greater", [keys, first])])
    return tape.op("Where", [seen, tape.scalar(0.0), tape.scalar(-np.inf)])

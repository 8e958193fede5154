"""Once through the float32 graph, a layer at a time: round each matrix by what it reads, and see what that costs.

Two kinds of text go along. Calibration windows give second moments. Probes, a few short texts, are carried on once for
every part of a matrix, with that part alone rounded; the logits at the end tell its damage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import LOGITS
from recycle_onnx.export.block_quantizer import Blocks, Quantization, dequantize
from recycle_onnx.export.calibrated.choice import RowGroup
from recycle_onnx.export.calibrated.folding import column_factors
from recycle_onnx.export.calibrated.gptq import Inputs, quantize_by_moments
from recycle_onnx.export.calibrated.segments import Floats, Product, Segment, State, beginning, cut
from recycle_onnx.export.calibrated.unfinished import Position, Rounded, Unfinished
from recycle_onnx.export.lazy import load_lazily
from recycle_onnx.machine.machine import Machine
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.ort.allocator import give_back

Parts = list[tuple[RowGroup, Blocks, Quantization]]
"""Rows of a matrix, what they are rounded to, and how that is stored."""
Results = dict[str, tuple[Floats | None, list[Parts]]]
"""By the name of what matrices read: the factors of their columns, and the parts of each."""
BATCH = 8
"""Windows that are read at once."""
PROBES = 4
"""Texts on which the damage of a part is judged: every part carries them on once, so each one costs a pass."""
PROBE_LENGTH = 32
"""Tokens of a probe: as for their number, time grows with it for every part of every matrix."""
EVERY = 2
"""Of a probe's positions one in so many is judged at the end."""
STAGE = "calibrating"
"""Begins all that progress says meanwhile."""


@dataclass
class Sweep:
    """One pass through a graph, layer by layer.

    `windows` are token ids [n, length]; the columns of matrices that read a value in `foldable` may get factors.
    """

    bundle: Bundle
    how: Quantization
    windows: NDArray[np.int64]
    foldable: Collection[str]
    threads: int | None
    report: Progress
    unfinished: Unfinished

    def run(self) -> Rounded:
        """Round every matrix of the layers that `how` gives 4 bits; go on where an interrupted run left off."""
        segments = cut(load_lazily(self.bundle.graph("full"), {}))
        first = len(self.windows) // PROBES or 1
        probe = self.windows[::first][:PROBES, :PROBE_LENGTH]
        spec = self.bundle.manifest.graphs["full"]
        start = [beginning(spec, self.windows[at : at + BATCH]) for at in range(0, len(self.windows), BATCH)]
        at = self.unfinished.load() or Position(0, Rounded([], [], [], {}), start, [beginning(spec, probe)])
        try:
            for number, segment in enumerate(segments[:-1]):
                if number >= at.layers:
                    self.report(number, len(segments), f"{STAGE}: layer {number} of {len(segments) - 2}")
                    positions = self._through(segment, at)
                    for at in positions:
                        self.unfinished.save_now_and_then(at)
        except KeyboardInterrupt:
            self.unfinished.save(at)
            raise
        at = replace(at, states=[])
        self.unfinished.save(at)  # for what follows the sweep, which may be interrupted too
        self.report(len(segments) - 1, len(segments), f"{STAGE}: judging")
        self._judge(segments[-1], at.probes, at.rounded)
        return at.rounded

    def _through(self, segment: Segment, at: Position) -> Iterator[Position]:
        """Yield positions up to the one behind `segment`, each to go on from."""
        matrices = segment.load()
        for place in range(at.seen, len(at.states)):
            at = self._seen(segment, at, place, matrices)
            yield at
        segment.close()
        results = self._results(segment, at.moments, matrices)
        yield self._behind(segment, at, matrices, results)
        segment.close()

    def _seen(self, segment: Segment, at: Position, place: int, matrices: Mapping[str, Floats]) -> Position:
        """Carry some calibration windows through `segment`, and add what its matrices read to the second moments."""
        state = at.states[place]
        new, moments = segment.moments(state, matrices, self.threads)
        states = [*at.states[:place], segment.behind(state, new), *at.states[place + 1 :]]
        totals = {x: at.moments[x] + sums if at.moments else sums for x, sums in moments.items()}
        return replace(at, states=states, seen=place + 1, moments=totals)

    def _results(self, segment: Segment, sums: Mapping[str, Floats], matrices: Mapping[str, Floats]) -> Results:
        """Round the matrices of `segment`, those together that read the same."""
        tokens = np.float32(self.windows.size)

        def rounded(x: str) -> tuple[Floats | None, list[Parts]]:
            give_back()  # what reading the windows, and others before, left: of TinyLlama's shape 0.2 GB and more
            own = {p.weight: p.matrix(matrices[p.weight]) for p in segment.products if p.x == x}
            return self._round(own, sums[x] / tokens, foldable=x in self.foldable)

        workers = self.threads or Machine.this().processors.useful_threads
        # A value's matrices a thread: numpy's BLAS would start threads of its own in each of them, which spin between
        # its many small products. For a layer of 135 M parameters on two cores, one matrix at a time on all cores took
        # 2.2 s (2.1 s of processors' time), and so many at once on one core each 1.2 s (1.2 s).
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            return dict(zip(segment.multiplied, pool.map(rounded, segment.multiplied), strict=True))

    def _behind(self, segment: Segment, at: Position, matrices: Mapping[str, Floats], results: Results) -> Position:
        """Carry the probes through `segment`, and begin one for each part; the first is of the float32 model."""

        def carry(probe: State, matrices: Mapping[str, Floats]) -> State:
            return segment.behind(probe, segment.run(probe, matrices, self.threads))

        probes, rounded = [carry(probe, matrices) for probe in at.probes], at.rounded.copy()
        rounded.factors.update({x: factors for x, (factors, _) in results.items() if factors is not None})
        waiting = {x: iter(parts) for x, (_, parts) in results.items()}
        for product in segment.products:
            matrix = product.matrix(matrices[product.weight])
            for part, blocks, how in next(waiting[product.x]):
                rounded.parts.append(part)
                rounded.blocks.append(blocks)
                rounded.hows.append(how)
                values = dequantize(blocks, how) / rounded.factors.get(product.x, np.float32(1))
                instead = _with_rows(product, matrix, part.rows, values)
                probes.append(carry(at.probes[0], {**matrices, product.weight: instead}))
        return Position(at.layers + 1, rounded, at.states, probes)

    def _round(
        self, matrices: Mapping[str, Floats], moments: Floats, *, foldable: bool
    ) -> tuple[Floats | None, list[Parts]]:
        """Round matrices [N, K] that read the same; return the factors of their columns, and the parts of each."""
        hows = {name: self.how.for_matrix(name, len(moments)) for name in matrices}
        four = {name: how for name, how in hows.items() if how is not None and how.bits == self.how.bits}
        if not four:
            return None, [[] for _ in matrices]
        inputs = Inputs.of(moments)
        factors = None
        if foldable:
            factors = column_factors(list(matrices.values()), inputs, next(iter(four.values())))
        if factors is not None:
            inputs.divide(factors)

        def parts(name: str, matrix: Floats) -> Parts:
            if name not in four:
                return []
            folded = matrix if factors is None else matrix * factors
            blocks, size = quantize_by_moments(folded, inputs, four[name]), matrix.shape[1]
            return [
                (RowGroup(name, rows, (rows[1] - rows[0]) * size, 0.0), _rows(blocks, rows), four[name])
                for rows in parts_of(name, len(matrix), self.bundle)
            ]

        return factors, [parts(*item) for item in matrices.items()]

    def _judge(self, head: Segment, probes: list[State], rounded: Rounded) -> None:
        """Measure the damage of every part."""
        matrices = head.load()

        def log_probabilities(state: State) -> Floats:
            thinned = {name: _thinned(state[name]) for name in head.reads}
            logits = head.run(thinned, matrices, self.threads)[LOGITS]
            shifted = logits - logits.max(-1, keepdims=True)
            values: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            return values

        plain = log_probabilities(probes[0])
        chances = np.exp(plain)
        for place, state in enumerate(probes[1:]):
            divergence = float((chances * (plain - log_probabilities(state))).sum(-1).mean())
            rounded.parts[place] = replace(rounded.parts[place], damage=divergence)
            self.report(place + 1, len(probes) - 1, f"{STAGE}: judging")
        head.close()


def parts_of(weight: str, rows: int, bundle: Bundle) -> Iterator[tuple[int, int]]:
    """Return rows of a matrix that are stored together: queries, keys and values apart, anything else whole.

    (In a model of 135 M parameters values are a part in thirty of the weights, and 40 % of the damage.)
    """
    spec = bundle.manifest.graphs["full"]
    keys = spec.num_kv_heads * spec.head_dim
    return pairwise([0, rows - 2 * keys, rows - keys, rows] if "qkv_proj" in weight else [0, rows])


def _with_rows(product: Product, matrix: Floats, rows: tuple[int, int], instead: Floats) -> Floats:
    """Return the weight as the graph reads it, with other values in these rows."""
    whole = matrix.copy()
    whole[slice(*rows)] = instead
    return np.ascontiguousarray(whole.T) if product.transposed else whole


def _rows(blocks: Blocks, rows: tuple[int, int]) -> Blocks:
    part = slice(*rows)
    zeros = blocks.zero_points
    return Blocks(blocks.packed[part], blocks.scales[part], None if zeros is None else zeros[part])


def _thinned(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return every other position of hidden states [B, S, H]."""
    return array[:, ::EVERY] if array.ndim == 3 else array

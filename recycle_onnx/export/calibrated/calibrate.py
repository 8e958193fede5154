"""A float32 bundle to the quantized matrices of its full model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle
from recycle_onnx.export.block_quantizer import Blocks, Quantization, join, quantize
from recycle_onnx.export.calibrated import sweep
from recycle_onnx.export.calibrated.choice import bits_of, check_budget, choose
from recycle_onnx.export.calibrated.folding import Folding, origins
from recycle_onnx.export.calibrated.kept_text import Ids
from recycle_onnx.export.calibrated.scales import GraphTensors, tune
from recycle_onnx.export.calibrated.segments import Segment, cut
from recycle_onnx.export.calibrated.sweep import Sweep
from recycle_onnx.export.calibrated.texts import WINDOW, more_windows, windows
from recycle_onnx.export.calibrated.unfinished import Rounded, Unfinished
from recycle_onnx.export.lazy import load_lazily, weights_of
from recycle_onnx.export.quantize_graph import Made
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.ort.allocator import give_back
from recycle_onnx.tuning import Tuner

LARGEST = 2_500_000_000
"""Bytes of float32 weights up to which int4 is calibrated by default: a model of 0.6 B parameters takes some 20 minutes
on two cores."""
BITS_PER_WEIGHT = 5.5
"""Blocks of 32 with float32 scales take 5.125 by themselves; the rest is for 8 bits where 4 hurt most. llama.cpp's
Q4_K_M has 5.53 on a model of 135 M parameters."""
TOKENS_A_COLUMN = 6
"""Of the widest matrix: three times what GPTQ needs not to lose to rounding."""
FEWEST_WINDOWS = 12
"""Windows at least, so that each kind of text has some, however few columns a model's matrices have."""
VERSION = 2
"""Of what is kept of an unfinished calibration."""


@dataclass(frozen=True)
class Calibration:
    """The input of a calibration: a text file or prompts (None: our own mixture), and the mean bits a weight.

    The bits count for those matrices of the layers that can have 4, scales and zero points included. Models of more
    than `largest` bytes of float32 weights are rounded by `mse` instead. A `tuner`, such as
    `recycle_onnx.training.scales.tune` (needs torch), tunes the scales afterwards; None leaves them.
    """

    text: Path | None = None
    bits_per_weight: float = BITS_PER_WEIGHT
    largest: int | None = None
    tuner: Tuner | None = None


@dataclass(frozen=True)
class Calibrated:
    """The quantized matrices, a summary of them, and vectors (norms) that take the place of the model's own."""

    made: Made
    summary: dict[str, Any] | None
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def calibrate(
    bundle: Bundle, how: Quantization, calibration: Calibration, threads: int | None, report: Progress
) -> Calibrated:
    """Quantize the layers of a float32 bundle's full model by what they read.

    Raises:
        InputError: an unsuitable text, or a budget that cannot be met.
    """
    model = load_lazily(bundle.graph("full"), {})
    segments = cut(model)
    shapes = _shapes(segments, how)
    if not shapes:
        return Calibrated({}, None)
    sizes = [(rows * columns, bits_of(own)) for rows, columns, own in shapes.values()]
    least = sum(size * bits for size, bits in sizes) / sum(size for size, _ in sizes)
    check_budget(calibration.bits_per_weight, least)
    columns = max(columns for _, columns, _ in shapes.values())
    length = min(bundle.manifest.context_length, WINDOW)
    rows = max(FEWEST_WINDOWS, -(-TOKENS_A_COLUMN * columns // length))
    ids = windows(bundle, calibration.text, columns, rows, threads, report)
    unfinished = Unfinished(_key(bundle, how, ids))
    before = origins(model, shapes)
    rounded = Sweep(bundle, how, ids, before, threads, report, unfinished).run()
    give_back()  # the C library keeps 0.4 GB that sessions had, for a model of 135 M parameters
    eight = _eight(how, rounded)
    chosen = choose(
        rounded.parts,
        [bits_of(own) for own in rounded.hows],
        [bits_of(own) for own in eight],
        calibration.bits_per_weight,
    )
    folding = Folding.of(rounded.factors, model, before)
    calibrated = Calibrated(
        _joined(segments, rounded, eight, chosen, folding),
        _summary(rounded, eight, chosen, ids, calibration),
        folding.vectors(weights_of(model)),
    )
    if calibration.tuner is not None:
        calibrated = _tuned(calibrated, bundle, folding, ids, calibration, report)
    unfinished.remove()
    return calibrated


def _tuned(
    calibrated: Calibrated, bundle: Bundle, folding: Folding, ids: Ids, calibration: Calibration, report: Progress
) -> Calibrated:
    """Return the matrices with tuned scales, or as they are where the tuner has none that are better."""
    assert calibration.tuner is not None
    windows, write = more_windows(bundle, calibration.text, ids)
    tensors = GraphTensors(bundle, folding)
    made, vectors, tuned = tune(tensors, calibrated.made, windows, calibration.tuner, report, write=write)
    give_back()  # tuning leaves as much, and two models are to be loaded and compared
    if tuned is None:
        return calibrated
    change = {"tokens": tuned.tokens, "divergence_before": tuned.before, "divergence": tuned.after}
    return Calibrated(made, {**(calibrated.summary or {}), "tuning": change}, {**calibrated.vectors, **vectors})


def _shapes(segments: list[Segment], how: Quantization) -> dict[str, tuple[int, int, Quantization]]:
    """Return rows and columns of every matrix that gets 4 bits, and how it is stored."""
    shapes = {}
    for segment in segments[:-1]:
        for product in segment.products:
            shape = segment.matrices[product.weight].shape.numpy()
            rows, columns = shape[::-1] if product.transposed else shape
            own = how.for_matrix(product.weight, columns)
            if own is not None and own.bits == how.bits:
                shapes[product.weight] = rows, columns, own
    return shapes


def _key(bundle: Bundle, how: Quantization, ids: Ids) -> str:
    constants = (VERSION, sweep.BATCH, sweep.PROBES, sweep.PROBE_LENGTH)
    text = f"{bundle.digest} {how} {ids.shape} {constants} {hashlib.sha256(ids.tobytes()).hexdigest()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _eight(how: Quantization, rounded: Rounded) -> list[Quantization]:
    """Return how each part is stored in 8 bits: symmetric, in the largest blocks that round one row as several."""
    eight = Quantization(bits=8, symmetric=True, keep=(), activations=how.activations)
    widths = [blocks.scales.shape[1] * own.block_size for blocks, own in zip(rounded.blocks, rounded.hows, strict=True)]
    hows = [eight.for_matrix(part.weight, width) for part, width in zip(rounded.parts, widths, strict=True)]
    return [own for own in hows if own is not None]


def _joined(
    segments: list[Segment], rounded: Rounded, eight: list[Quantization], chosen: list[bool], folding: Folding
) -> dict[str, list[tuple[Blocks, Quantization]]]:
    """Join the matrices with their factors; parts that follow each other and have as many bits become one."""
    sources = {
        product.weight: (product, segment.matrices[product.weight])
        for segment in segments
        for product in segment.products
    }
    made: dict[str, list[tuple[Blocks, Quantization]]] = {}
    for (weight, is_eight), run in groupby(
        range(len(rounded.parts)), lambda place: (rounded.parts[place].weight, chosen[place])
    ):
        places = list(run)
        first, last = places[0], places[-1]
        rows = slice(rounded.parts[first].rows[0], rounded.parts[last].rows[1])
        if is_eight:
            product, stored = sources[weight]
            how = eight[first]
            matrix = folding.applied(weight, product.matrix(stored.numpy()))
            blocks = quantize(np.ascontiguousarray(matrix[rows]), how)
        else:
            how = rounded.hows[first]
            blocks = folding.scaled(weight, join([rounded.blocks[place] for place in places], how), rows)
        made.setdefault(weight, []).append((blocks, how))
    return made


def _summary(
    rounded: Rounded, eight: list[Quantization], chosen: list[bool], ids: Ids, calibration: Calibration
) -> dict[str, Any]:
    hows = [e if is_eight else own for own, e, is_eight in zip(rounded.hows, eight, chosen, strict=True)]
    values = [part.values for part in rounded.parts]
    bits = sum(size * bits_of(own) for size, own in zip(values, hows, strict=True)) / sum(values)
    worst = [part for part, is_eight in zip(rounded.parts, chosen, strict=True) if is_eight]
    return {
        "text": calibration.text.name if calibration.text else "prose, facts, dialogue, code and the model's own",
        "tokens": int(ids.size),
        "bits_per_weight": round(bits, 3),
        "eight_bits": [f"{part.weight}[{part.rows[0]}:{part.rows[1]}]" for part in worst],
        "matrices": len(rounded.parts),
        "folded": len(rounded.factors),
    }

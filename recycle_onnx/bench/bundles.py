"""Random bundles of a known shape, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from recycle_onnx.bench.shapes import shape, write_random_base
from recycle_onnx.cache import cache_folder
from recycle_onnx.errors import InputError
from recycle_onnx.files import temporary_sibling
from recycle_onnx.progress import Progress, silent

if TYPE_CHECKING:
    from recycle_onnx.export import HalfPrecision, Quantization

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""Those of `export --precision`."""


def random_bundle(
    name: str,
    precision: str,
    module_layers: int,
    block_size: int,
    draft_vocab: int | None = None,
    flavour: str = "ort",
    activations: str = "fp32",
    report: Progress = silent,
) -> Path:
    """Return the bundle, from the cache if it was made before.

    A draft vocabulary holds the first `draft_vocab` tokens.

    Raises:
        InputError: an unknown shape, precision, flavour or type of activations, or more module layers than the shape
            has.
        RecycleError: the disk is full.
    """
    from recycle_onnx.checkpoint import NewModule, attach
    from recycle_onnx.export import DraftVocabulary, ExportOptions, export
    from recycle_onnx.export.flavours import flavour_named

    config = shape(name)
    flavour_named(flavour)
    how = _precision(precision, block_size, activations)
    recipe = "" if how is None else f"-{hashlib.sha256(repr(how).encode()).hexdigest()[:8]}"
    draft = "" if draft_vocab is None else f"-draft{draft_vocab}"
    kind = "" if flavour == "ort" else f"-{flavour}"
    target = cache_folder() / "shapes" / f"{name}-{precision}{recipe}-module{module_layers}{draft}{kind}"
    if target.is_dir():
        return target
    with temporary_sibling(target) as work:
        report(0, 0, f"making random weights for {name}")
        write_random_base(work / "model", config)
        attach(work / "model", work / "model", NewModule(num_layers=module_layers))
        vocabulary = None
        if draft_vocab is not None:
            (work / "text.txt").write_text("<0>")  # nothing to count: tokens are taken in their order
            vocabulary = DraftVocabulary(draft_vocab, work / "text.txt")
        export(
            work / "model",
            target,
            ExportOptions(flavour=flavour, quantization=how, draft_vocabulary=vocabulary, compare=False),
            report=report,
        )
    return target


def _precision(name: str, block_size: int, activations: str) -> Quantization | HalfPrecision | None:
    """Return how weights are stored; None for float32."""
    from recycle_onnx.export import HalfPrecision, Quantization

    if name not in PRECISIONS:
        raise InputError(f"precision is {name!r}; expected one of: {', '.join(PRECISIONS)}")
    if name.startswith("int"):
        bits = int(name.removeprefix("int"))
        return Quantization(bits=bits, block_size=block_size, method="rtn", activations=activations)
    return HalfPrecision() if name == "fp16" else None

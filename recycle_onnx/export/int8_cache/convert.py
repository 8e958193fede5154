"""A bundle with caches of floats to one with caches of eight bits: its graphs change, its weights stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from recycle_onnx.bundle import Bundle, Manifest, describe_files, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export.int8_cache.attention import OPSET, with_int8_cache
from recycle_onnx.export.int8_cache.scales import cache_scales
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.ort.providers import why_too_old

CacheBits = Literal["int8"]
"""Of keys and values that are no floats."""
GENAI = "genai_config.json"
"""Left out: onnxruntime-genai has neither such caches nor a way to say so."""
IR_VERSION = 12
"""The one that goes with the opset."""


def check_int8_cache(flavour: str, float_type: str) -> None:
    """Refuse graphs that cannot have such caches.

    Raises:
        InputError: another flavour than `ort`, activations in float16, or an ONNX Runtime that is too old.
    """
    if flavour != "ort":
        raise InputError(
            f"--kv int8 needs ONNX Runtime's own operators, and the flavour {flavour!r} has ONNX's only: "
            "leave out --kv, or export with --flavour ort"
        )
    if float_type != "float32":
        raise InputError(f"--kv int8 is for CPUs, and goes with float32 activations, not {float_type}: leave out --kv")
    if reason := why_too_old(flavour, "int8"):
        raise InputError(reason)


def to_int8_cache(folder: Path, manifest: Manifest, threads: int | None, report: Progress) -> Manifest:
    """Convert the bundle in `folder` in place; return its manifest, which is to be written."""
    scales = cache_scales(Bundle(folder, manifest), threads, report)
    for kind, layers in scales.items():
        model = ir.load(folder / graph_file(kind))
        with_int8_cache(model, layers)
        model.ir_version = IR_VERSION
        ir.save(model, folder / graph_file(kind))
    (folder / GENAI).unlink(missing_ok=True)
    files = {name: file for name, file in manifest.files.items() if name != GENAI}
    return replace(
        manifest,
        graphs={kind: replace(spec, cache_type="int8") for kind, spec in manifest.graphs.items()},
        files={**files, **describe_files(folder, map(graph_file, scales))},
        provenance={**manifest.provenance, "opset": OPSET, "ir_version": IR_VERSION},
    )

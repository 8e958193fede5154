"""A float32 bundle to a quantized one, written whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import onnx_ir as ir

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.contract import FloatType
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import Quantization
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.fidelity import Fidelity, measure
from recycle_onnx.export.half_precision import HalfPrecision, HalfPrecisionRewriter
from recycle_onnx.export.quantize_graph import GraphQuantizer
from recycle_onnx.export.report import Report
from recycle_onnx.files import new_folder


def quantize_bundle(
    bundle: Path,
    out: Path,
    how: Quantization | HalfPrecision | None = None,
    *,
    text: Path | None = None,
    compare: bool = True,
    force: bool = False,
    report: Report = lambda _: None,
) -> tuple[Manifest, Fidelity | None]:
    """Write `bundle` with weights of fewer bits as `out`, and what that costs on `text` (default: its own words).

    Comparing loads both bundles; without it nothing is known of the cost.

    Raises:
        InputError: not a float32 bundle, unsuitable options or text, or `out` exists (unless `force`).
        RecycleError: the disk is full or not writable.
    """
    how = how or Quantization()
    source = Bundle.open(bundle)
    if source.manifest.precision != "fp32":
        raise InputError(f"{bundle}: is {source.manifest.precision} already; expected a float32 bundle to quantize")
    if text and not text.is_file():
        raise InputError(f"{text}: no such text file")
    with new_folder(out, force=force, keep=[bundle, Path.cwd(), Path.home()]) as folder:
        _write_graphs(source, folder, _rewriter(how, report))
        for name in source.manifest.files:
            if (source.folder / name).exists() and not (folder / name).exists():
                shutil.copyfile(source.folder / name, folder / name)
        manifest = _manifest(source.manifest, folder, how)
        manifest.write(folder / MANIFEST)
        fidelity = measure(source, Bundle(folder, manifest), text, report) if compare else None
        if fidelity is not None:
            manifest = replace(manifest, quantization={**asdict(how), "fidelity": asdict(fidelity)})
            manifest.write(folder / MANIFEST)
    return manifest, fidelity


def _rewriter(how: Quantization | HalfPrecision, report: Report) -> GraphQuantizer | HalfPrecisionRewriter:
    return HalfPrecisionRewriter(report) if isinstance(how, HalfPrecision) else GraphQuantizer(how, report)


def _write_graphs(source: Bundle, folder: Path, rewriter: GraphQuantizer | HalfPrecisionRewriter) -> None:
    for kind in source.manifest.graphs:
        name = graph_file(kind)
        model = ir.load(source.folder / name)
        with ExternalDataWriter(folder / f"{name}.data") as writer:
            rewriter.rewrite(model, writer)
        ir.save(model, folder / name)


def _manifest(source: Manifest, folder: Path, how: Quantization | HalfPrecision) -> Manifest:
    float_type: FloatType = "float16" if isinstance(how, HalfPrecision) else "float32"
    return replace(
        source,
        graphs={name: replace(spec, float_type=float_type) for name, spec in source.graphs.items()},
        precision=how.precision,
        quantization=asdict(how),
        files=describe_files(folder, sorted(path.name for path in folder.iterdir())),
        provenance={**source.provenance, "quantizer": f"recycle-onnx {__version__}"},
    )

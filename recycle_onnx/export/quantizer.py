"""A float32 bundle to a quantized one, written whole or not at all."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import Quantization
from recycle_onnx.export.fidelity import Rounding, measure
from recycle_onnx.export.flavours import Precision, flavour_named
from recycle_onnx.export.lazy import Known, load_lazily
from recycle_onnx.export.report import Report, silent
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.files import new_folder, users_folders
from recycle_onnx.untrusted import copy_file


def quantize_bundle(
    bundle: Path,
    out: Path,
    how: Precision | None = None,
    *,
    text: Path | None = None,
    compare: bool = True,
    force: bool = False,
    report: Report = silent,
) -> tuple[Manifest, Rounding]:
    """Write `bundle` with weights of fewer bits as `out`, and what that costs on `text` (default: its own words).

    Comparing gives `Fidelity` and loads both bundles; without it only `out` is loaded, and gives `Rounding`.

    Raises:
        InputError: not a float32 bundle, unsuitable options or text, or `out` exists (unless `force`).
        RecycleError: the disk is full or not writable.
    """
    source = Bundle.open(bundle)
    flavour = flavour_named(source.manifest.flavour)
    how = flavour.suited(how or Quantization())
    if source.manifest.precision != "fp32":
        raise InputError(f"{bundle}: is {source.manifest.precision} already; expected a float32 bundle to quantize")
    check_text(text)
    with new_folder(out, force=force, keep=[bundle, *users_folders()]) as folder:
        _write_graphs(source, folder, flavour.rewriter(how, report))
        for name in source.manifest.files:
            if (source.folder / name).exists() and not (folder / name).exists():
                copy_file(source.folder / name, folder / name)
        files = describe_files(folder, sorted(path.name for path in folder.iterdir()))
        manifest = replace(as_quantized(source.manifest, how), files=files)
        manifest.write(folder / MANIFEST)
        cost = measure(Bundle(folder, manifest), source if compare else None, text, report)
        manifest = with_cost(manifest, cost)
        manifest.write(folder / MANIFEST)
    return manifest, cost


def check_text(text: Path | None) -> None:
    """Say no before any work is done.

    Raises:
        InputError: `text` is no file.
    """
    if text and not text.is_file():
        raise InputError(f"{text}: no such text file")


def as_quantized(manifest: Manifest, how: Precision) -> Manifest:
    """The manifest of a float32 bundle for one in another precision; the files are still the old ones."""
    return replace(
        manifest,
        graphs={name: replace(spec, float_type=how.float_type) for name, spec in manifest.graphs.items()},
        precision=how.precision,
        quantization=asdict(how),
        provenance={**manifest.provenance, "quantizer": f"recycle-onnx {__version__}"},
    )


def with_cost(manifest: Manifest, cost: Rounding) -> Manifest:
    """The manifest of a quantized bundle with what was measured."""
    return replace(manifest, quantization={**(manifest.quantization or {}), "fidelity": asdict(cost)})


def _write_graphs(source: Bundle, folder: Path, write: Rewriter) -> None:
    known: Known = {}
    for kind in source.manifest.graphs:
        name = graph_file(kind)
        write.save(load_lazily(source.folder / name, known), folder / name)

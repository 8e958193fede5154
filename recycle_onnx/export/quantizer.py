"""A float32 bundle to a quantized one, written whole or not at all."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import CALIBRATED, SOURCE, Quantization
from recycle_onnx.export.calibrated.calibrate import BITS_PER_WEIGHT, Calibrated, Calibration, calibrate
from recycle_onnx.export.fidelity import Rounding, check_quality, measure
from recycle_onnx.export.flavours import Precision, flavour_named
from recycle_onnx.export.lazy import Known, load_lazily
from recycle_onnx.export.report import Report, silent
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.files import new_folder, users_folders
from recycle_onnx.runtime.ort.sessions import check_threads
from recycle_onnx.untrusted import copy_file


def quantize_bundle(
    bundle: Path,
    out: Path,
    how: Precision | None = None,
    *,
    calibration: Calibration | None = None,
    text: Path | None = None,
    compare: bool = True,
    force: bool = False,
    force_quality: bool = False,
    threads: int | None = None,
    report: Report = silent,
) -> tuple[Manifest, Rounding]:
    """Write `bundle` with weights of fewer bits as `out`, and what that costs on `text` (default: plain English).

    The method `calibrated` reads text first, as `calibration` says; an interrupted one goes on where it was. Comparing
    gives `Fidelity` and loads both bundles; without it only `out` is loaded, and gives `Rounding`. `threads` are ONNX
    Runtime's (None: one a physical core).

    Raises:
        InputError: not a float32 bundle, unsuitable options or text, or `out` exists (unless `force`).
        RecycleError: the disk is full or not writable, or perplexity rises by more than a quarter (unless
            `force_quality`).
    """
    source = Bundle.open(bundle)
    flavour = flavour_named(source.manifest.flavour)
    how = flavour.suited(how or Quantization())
    if source.manifest.precision != "fp32":
        raise InputError(f"{bundle}: is {source.manifest.precision} already; expected a float32 bundle to quantize")
    if method_of(how) == SOURCE:
        raise InputError("--method source goes with `export` of a GGUF file; a bundle has its blocks no more")
    check_text(text)
    check_threads(threads)
    calibration = calibration or Calibration()
    how = settled(how, calibration, 4 * int(source.manifest.base.get("parameters", 0)), report)
    with new_folder(out, force=force, keep=[bundle, *users_folders()]) as folder:
        calibrated = calibrate_for(source, how, calibration, threads, report)
        _write_graphs(source, folder, flavour.rewriter(how, report, calibrated.made, calibrated.vectors))
        for name in source.manifest.files:
            if (source.folder / name).exists() and not (folder / name).exists():
                copy_file(source.folder / name, folder / name)
        files = describe_files(folder, sorted(path.name for path in folder.iterdir()))
        manifest = replace(as_quantized(source.manifest, how, calibrated), files=files)
        manifest.write(folder / MANIFEST)
        cost = measure(Bundle(folder, manifest), source if compare else None, text, report, threads)
        if not force_quality:
            check_quality(how.precision, cost, method_of(how))
        manifest = with_cost(manifest, cost)
        manifest.write(folder / MANIFEST)
    return manifest, cost


def check_text(text: Path | None) -> None:
    """Refuse a text that cannot be measured on, before any work begins.

    Raises:
        InputError: `text` is no file.
    """
    if text and not text.is_file():
        raise InputError(f"{text}: no such text file")


def settled(how: Precision, calibration: Calibration, size: int, report: Report) -> Precision:
    """Return the precision with a method that suits `size` bytes of float32 weights.

    That is `mse` where calibrating would take long.

    Raises:
        InputError: options of a calibration for another method.
    """
    if not isinstance(how, Quantization) or how.method != CALIBRATED:
        if calibration.text or calibration.bits_per_weight != BITS_PER_WEIGHT:
            raise InputError("--calibration and --bits-per-weight go with --bits 4 --method calibrated")
        return how
    check_text(calibration.text)
    if calibration.largest is None or size <= calibration.largest:
        return how
    report(
        f"rounding without calibration (`mse`): {size / 1e9:.1f} GB of float32 weights are more than "
        f"{calibration.largest / 1e9:.1f} GB; --method calibrated takes its time and keeps more of the model"
    )
    return replace(how, method="mse")


def calibrate_for(
    source: Bundle, how: Precision, calibration: Calibration, threads: int | None, report: Report
) -> Calibrated:
    """Calibrate the matrices of a float32 bundle's full model; return none where the method does not calibrate."""
    if method_of(how) != CALIBRATED:
        return Calibrated({}, None)
    assert isinstance(how, Quantization)
    return calibrate(source, how, calibration, threads, report)


def method_of(how: Precision) -> str:
    """Return how weights are rounded; empty for half precision."""
    return how.method if isinstance(how, Quantization) else ""


def as_quantized(manifest: Manifest, how: Precision, calibrated: Calibrated) -> Manifest:
    """Return a float32 bundle's manifest for one in another precision; the files are still the old ones."""
    about = {} if calibrated.summary is None else {"calibration": calibrated.summary}
    return replace(
        manifest,
        graphs={name: replace(spec, float_type=how.float_type) for name, spec in manifest.graphs.items()},
        precision=how.precision,
        quantization={**asdict(how), **about},
        provenance={**manifest.provenance, "quantizer": f"recycle-onnx {__version__}"},
    )


def with_cost(manifest: Manifest, cost: Rounding) -> Manifest:
    """Return the manifest of a quantized bundle with what was measured."""
    return replace(manifest, quantization={**(manifest.quantization or {}), "fidelity": asdict(cost)})


def _write_graphs(source: Bundle, folder: Path, write: Rewriter) -> None:
    known: Known = {}
    for kind in source.manifest.graphs:
        name = graph_file(kind)
        write.save(load_lazily(source.folder / name, known), folder / name)

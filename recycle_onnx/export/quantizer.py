"""A float32 bundle to a quantized one, written whole or not at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import CALIBRATED, SOURCE, Quantization
from recycle_onnx.export.calibrated.calibrate import BITS_PER_WEIGHT, Calibrated, Calibration, calibrate
from recycle_onnx.export.fidelity import Rounding, check_quality, measure
from recycle_onnx.export.flavours import Precision, flavour_named
from recycle_onnx.export.int8_cache.convert import CacheBits, check_int8_cache, to_int8_cache
from recycle_onnx.export.lazy import Known, load_lazily
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.files import new_folder, users_folders
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.ort.sessions import check_threads
from recycle_onnx.untrusted import copy_file


@dataclass(frozen=True)
class QuantizeOptions:
    """The choices of a quantization that are not in the weights: what it reads, and what is measured of it.

    Args:
        calibration: what the method `calibrated` reads first; an interrupted one goes on where it was.
        text: what to measure the cost on; None for a page of plain English.
        compare: load both bundles, and measure `Fidelity`. Without it only the new one is loaded, and gives `Rounding`.
        force_quality: write it even if perplexity rises by more than a quarter.
        threads: ONNX Runtime's, None for one a physical core.
        kv: `int8` for keys and values in eight bits, None for floats.
    """

    calibration: Calibration = field(default_factory=Calibration)
    text: Path | None = None
    compare: bool = True
    force_quality: bool = False
    threads: int | None = None
    kv: CacheBits | None = None


def quantize_bundle(
    bundle: Path,
    out: Path,
    how: Precision | None = None,
    options: QuantizeOptions | None = None,
    *,
    force: bool = False,
    report: Progress = silent,
) -> tuple[Manifest, Rounding]:
    """Write `bundle` with weights of fewer bits as `out`; return its manifest and what that costs.

    `how` is int4 in the usual way where it is None.

    Raises:
        InputError: not a float32 bundle, unsuitable options or text, or `out` exists (unless `force`).
        RecycleError: the disk is full or not writable, or perplexity rises by more than a quarter (unless
            `force_quality`).
    """
    options = options or QuantizeOptions()
    original = Bundle.open(bundle)
    flavour = flavour_named(original.manifest.flavour)
    how = flavour.suited(how or Quantization())
    if original.manifest.precision != "fp32":
        raise InputError(f"{bundle}: is {original.manifest.precision} already; expected a float32 bundle to quantize")
    if method_of(how) == SOURCE:
        raise InputError("--method source goes with `export` of a GGUF file; a bundle has its blocks no more")
    _check_caches(original, how, options)
    check_text(options.text)
    check_threads(options.threads)
    how = settled(how, options.calibration, 4 * int(original.manifest.base.get("parameters", 0)), report)
    with new_folder(out, force=force, keep=[bundle, *users_folders()]) as folder:
        calibrated = calibrate_for(original, how, options.calibration, options.threads, report)
        _write_graphs(original, folder, flavour.rewriter(how, report, calibrated.made, calibrated.vectors))
        _copy_others(original, folder)
        files = describe_files(folder, sorted(path.name for path in folder.iterdir()))
        manifest = replace(as_quantized(original.manifest, how, calibrated), files=files)
        if options.kv is not None:
            manifest = to_int8_cache(folder, manifest, options.threads, report)
        manifest.write(folder / MANIFEST)
        compared = original if options.compare else None
        cost = measure(Bundle(folder, manifest), compared, options.text, report, options.threads)
        if not options.force_quality:
            check_quality(how.precision, cost, method_of(how))
        manifest = with_cost(manifest, cost)
        manifest.write(folder / MANIFEST)
    return manifest, cost


def _check_caches(original: Bundle, how: Precision, options: QuantizeOptions) -> None:
    """Refuse a bundle with keys and values in int8, and to make them so where they cannot be."""
    if original.manifest.graphs["full"].cache_type is not None:
        raise InputError(
            f"{original.folder}: has keys and values in int8; export without --kv, and quantize with --kv int8"
        )
    if options.kv is not None:
        check_int8_cache(original.manifest.flavour, how.float_type)


def check_text(text: Path | None) -> None:
    """Refuse a text that cannot be measured on, before any work begins.

    Raises:
        InputError: `text` is no file.
    """
    if text and not text.is_file():
        raise InputError(f"{text}: no such text file")


def settled(how: Precision, calibration: Calibration, size: int, report: Progress) -> Precision:
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
        0, 0,
        f"rounding without calibration (`mse`): {size / 1e9:.1f} GB of float32 weights are more than "
        f"{calibration.largest / 1e9:.1f} GB; --method calibrated takes its time and keeps more of the model",
    )  # fmt: skip
    return replace(how, method="mse")


def calibrate_for(
    original: Bundle, how: Precision, calibration: Calibration, threads: int | None, report: Progress
) -> Calibrated:
    """Calibrate the matrices of a float32 bundle's full model; return none where the method does not calibrate."""
    if method_of(how) != CALIBRATED:
        return Calibrated({}, None)
    assert isinstance(how, Quantization)
    return calibrate(original, how, calibration, threads, report)


def method_of(how: Precision) -> str:
    """Return how weights are rounded; empty for half precision."""
    return how.method if isinstance(how, Quantization) else ""


def as_quantized(manifest: Manifest, how: Precision, calibrated: Calibrated) -> Manifest:
    """Return a float32 bundle's manifest for one in another precision; the files are still the old ones."""
    about = {} if calibrated.summary is None else {"calibration": calibrated.summary}
    stored = manifest.provenance.get("stored_as")  # what was integers before: rounding it anew is not passed over
    if stored and isinstance(how, Quantization) and how.method != SOURCE:
        about["requantized"] = stored
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


def _write_graphs(original: Bundle, folder: Path, write: Rewriter) -> None:
    known: Known = {}
    for kind in original.manifest.graphs:
        name = graph_file(kind)
        write.save(load_lazily(original.folder / name, known), folder / name)


def _copy_others(original: Bundle, folder: Path) -> None:
    """Copy the files that quantizing leaves as they are."""
    for name in original.manifest.files:
        if (original.folder / name).exists() and not (folder / name).exists():
            copy_file(original.folder / name, folder / name)

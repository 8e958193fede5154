"""An export into the user's cache: whole or not at all, and by one process or another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from recycle_onnx.checkpoint.cached import is_whole
from recycle_onnx.checkpoint.sources import NamedBase, folder_of
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.export.block_quantizer import CALIBRATED, Quantization
from recycle_onnx.export.exporter import ExportOptions, export
from recycle_onnx.export.flavours import Precision
from recycle_onnx.export.half_precision import HalfPrecision
from recycle_onnx.export.int8_cache.convert import CacheBits
from recycle_onnx.progress import Progress, silent
from recycle_onnx.temporary import SUFFIX, sweep

PRECISIONS = ("int8", "int4", "fp16", "fp32")


def export_to_cache(
    named: NamedBase,
    place: Path,
    precision: str,
    *,
    kv: CacheBits | None = None,
    threads: int | None = None,
    note: Callable[[str], None] = lambda _: None,
    report: Progress = silent,
) -> None:
    """Export a GGUF file, a Hugging Face folder, a checkpoint or a model on the hub to its `place` in the cache.

    The place is that of `checkpoint.cached.cached_place`; `kv` is the type of keys and values, None for floats. What is
    there already is replaced. What killed exports have left in the cache is removed.

    Raises:
        InputError: no such source, or one that cannot be exported, or not in this precision.
        RecycleError: the cache cannot be written to, or as for `export`.
    """
    # int8 costs next to nothing, and to measure that takes longer than the export
    compare = None if precision == "int4" else False
    options = ExportOptions(
        quantization=_quantization(precision),
        prefer_source=True,
        compare=compare,
        epsilon=False,
        threads=threads,
        kv=kv,
    )
    replaces = place.exists()
    _sweep(place.parents[1])
    try:
        with folder_of(
            named, place, force=replaces, note=note,
            progress=lambda converted, total, _: report(converted, total, "converting"),
        ) as folder:  # fmt: skip
            export(folder, place, options, force=replaces, report=report)
    except RecycleError as error:
        if isinstance(error.__cause__, OSError):
            raise RecycleError(f"{error}; RECYCLE_ONNX_CACHE names another folder for the cache") from error
        if not isinstance(error, InputError):
            raise
        if replaces or not is_whole(place, note):  # unless another process was faster
            raise
    finally:
        with suppress(OSError):  # which holds something, or was never made
            place.parent.rmdir()


def _quantization(precision: str) -> Precision | None:
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known; expected one of: {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return None
    if precision == "fp16":
        return HalfPrecision()
    bits = int(precision.removeprefix("int"))
    return Quantization(bits, method=CALIBRATED if bits == 4 else "")


def _sweep(bundles: Path) -> None:
    """Remove what exports that were killed left in the cache, whatever they were of."""
    for hidden in bundles.glob(f"*/.*{SUFFIX}"):
        name, _random, _suffix = hidden.name.removeprefix(".").rsplit(".", 2)
        sweep(hidden.with_name(name))
        with suppress(OSError):
            hidden.parent.rmdir()

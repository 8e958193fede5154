"""Weights as the kernels of this processor want them, kept in the user's cache and mapped instead of copied.

Otherwise every session makes a copy of its own when it loads, in private memory.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.cache import VerifiedFiles, cache_folder, read_cached
from recycle_onnx.contract import Kind
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.files import new_folder, sha256, write_json
from recycle_onnx.machine import processor
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.providers import Place, Placement
from recycle_onnx.runtime.ort.sessions import check_threads, open_original, open_session, session_options

GRAPH, WEIGHTS, MADE = "graph.onnx", "graph.onnx.data", "made.json"
"""The files of a cache entry; what it was made for is written last."""
SMALLEST_BYTES = 1024
"""Smaller tensors stay in the graph."""

logger = logging.getLogger(__name__)


def open_prepacked(bundle: Bundle, kind: Kind, provider: Place, threads: int | None) -> ort.InferenceSession:
    """Open a session like `open_session`'s, from the cache; make first what is missing or stale there.

    A cache that cannot be written, or that does not load, is worth a warning: the bundle's own graph is loaded then.

    Raises:
        InputError: another provider than the processor's own.
    """
    place = Placement.of(provider)
    check_threads(threads)
    if place.provider.name != CPU:
        raise InputError(
            f"weights are prepacked for the processor; provider {place.provider.name!r} lays them out itself: "
            "leave prepacked away"
        )
    path, folder = bundle.graph(kind), _folder(bundle, kind)
    try:
        if not _is_current(folder):
            _make(path, folder)
        return _open(bundle, kind, place, threads)
    except (RecycleError, OSError) as error:
        logger.warning("%s: no prepacked weights (%s); loading %s itself", folder, error, path)
        # So that the next load makes it anew, and does not stumble over it again.
        shutil.rmtree(folder, ignore_errors=True)
        return open_original(bundle, kind, place, threads)


def open_again(bundle: Bundle, kind: Kind, provider: Place, threads: int | None) -> ort.InferenceSession:
    """Open one more session over weights that are in the cache; nothing is made, and nothing deleted.

    Raises:
        RecycleError: they are not there, stale or damaged, or the session cannot be loaded.
    """
    if not _is_current(_folder(bundle, kind)):
        raise RecycleError(f"{_folder(bundle, kind)}: no prepacked weights")
    return _open(bundle, kind, provider, threads)


def _folder(bundle: Bundle, kind: Kind) -> Path:
    return cache_folder() / "prepacked" / bundle.digest[:32] / kind


def _open(bundle: Bundle, kind: Kind, provider: Place, threads: int | None) -> ort.InferenceSession:
    path, spec = _folder(bundle, kind) / GRAPH, bundle.manifest.graphs[kind]
    return open_session(path, spec, provider, threads, session_options(threads, "serial"))


def _made_for() -> dict[str, str]:
    return {"onnxruntime": ort.__version__, "processor": processor.identity()}


def _is_current(folder: Path) -> bool:
    """Tell whether the cache was made for this processor, and every byte is as it was made."""
    made = read_cached(folder / MADE)
    if made is None:
        return False
    files = made.pop("sha256", None)
    if made != _made_for():
        logger.warning("%s: stale (made for %s); making it again", folder, made)
        return False
    if isinstance(files, dict) and all(_is_whole(folder / name, files.get(name)) for name in (GRAPH, WEIGHTS)):
        return True
    logger.warning("%s: damaged; making it again", folder)
    return False


def _is_whole(path: Path, expected: object) -> bool:
    """Tell whether a file has the expected hash; it is hashed once, then recognised as the bundle's weights are."""
    try:
        verified = VerifiedFiles.load()
        if verified.knows(path, str(expected)):
            return True
        if sha256(path) != expected:
            return False
        verified.remember(path, str(expected))
        verified.save()
    except (OSError, InputError):
        return False
    return True


def _make(path: Path, folder: Path) -> None:
    with new_folder(folder, force=True) as work:
        options = session_options(None, "serial")
        options.optimized_model_filepath = str(work / GRAPH)
        for name, value in (
            ("optimized_model_external_initializers_file_name", WEIGHTS),
            ("optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST_BYTES)),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(f"session.{name}", value)
        # Opening a session is what writes the files: ONNX Runtime saves what it has prepared on the way.
        open_session(path, None, CPU, None, options)
        write_json(work / MADE, {**_made_for(), "sha256": {name: sha256(work / name) for name in (GRAPH, WEIGHTS)}})

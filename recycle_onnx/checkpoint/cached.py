"""Where the bundle of a source lies in the user's cache: its place follows from what the source holds.

To know it takes no exporter, so that what was exported before starts at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from recycle_onnx import __version__
from recycle_onnx.bundle import FORMAT, Bundle
from recycle_onnx.cache import VerifiedFiles, cache_folder
from recycle_onnx.checkpoint.adapter import Adapter
from recycle_onnx.checkpoint.module import Module
from recycle_onnx.checkpoint.sources.gguf_source import GgufSource
from recycle_onnx.checkpoint.sources.hub import HubModel
from recycle_onnx.checkpoint.sources.source import AnySource, NamedBase, find
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.files import read_json
from recycle_onnx.progress import silent

FOLDER = "bundles"
READ = (".json", ".jinja", ".safetensors")
"""Endings of the files that an export reads; cards, logs and other formats of weights change nothing."""


def cached_place(named: NamedBase, precision: str, kv: str | None = None) -> Path:
    """Return where the bundle of a GGUF file, a Hugging Face folder, a checkpoint or a model on the hub is kept.

    The place depends on the source's content, that of its adapter, the precision, the type of keys and values where
    they are no floats, and the version of this package. Its last part is the source's name, as the server calls a model
    by its folder.

    Raises:
        InputError: no such file, model or adapter, or a module without its base.
        RecycleError: the hub cannot be reached.
    """
    source = find(named, lambda _: None, silent)
    if isinstance(source, Path) and not source.exists():
        kinds = "a GGUF file, a Hugging Face folder, a checkpoint, a bundle or a hub id (org/name)"
        raise InputError(f"{named.name}: no such folder or file; expected {kinds}")
    if isinstance(source, Path) and Module.is_one(source):
        join = f"recycle-onnx attach BASE CHECKPOINT --module {source}"
        raise InputError(f"{source}: a module without its base; join them: {join}")
    made_of = [__version__, FORMAT, precision, *([] if kv is None else [kv]), *_content(source, named.adapter)]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    name = source.resolve().name if isinstance(source, Path) else source.name
    return cache_folder() / FOLDER / key / (name or "model")


def is_whole(bundle: Path, note: Callable[[str], None]) -> bool:
    """Tell whether a cached bundle is there; one that somebody damaged is told of, and as good as none."""
    if not bundle.exists():
        return False
    try:
        Bundle.open(bundle)
    except RecycleError as error:
        note(f"the cached bundle is made anew ({error})")
        return False
    return True


def _content(source: AnySource, adapter: Path | None) -> Iterator[str]:
    """Yield what would be another one if the source's content were: a commit, or hashes of files."""
    files = [] if adapter is None else Adapter(adapter).files
    if isinstance(source, HubModel):
        yield from (source.id, source.snapshot().name)
    else:
        files = [*_files(source), *files]
    verified = VerifiedFiles.load()
    for path in files:
        yield from (path.name, verified.digest(path))
    verified.save()


def _files(source: Path | GgufSource) -> Iterator[Path]:
    """Yield the files that an export of the source reads; where a module has its base elsewhere, that one's too."""
    if not isinstance(source, Path):
        yield source.path
        return
    module = source / "recycler"
    config = module / "config.json"
    base = (read_json(config).get("base") or {}).get("path") if config.is_file() else None
    for folder in (source, module, *([] if base is None else [source / base])):
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if path.suffix in READ and path.is_file())

"""From what the user named to a folder: a path that exists wins, and only then a name may be a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recycle_onnx.checkpoint.sources.adapted import AdaptedSource
from recycle_onnx.checkpoint.sources.gguf_source import GgufSource, Note
from recycle_onnx.checkpoint.sources.hub import HubModel, is_hub_id
from recycle_onnx.errors import InputError
from recycle_onnx.files import check_target, new_folder, temporary_sibling, users_folders
from recycle_onnx.progress import Progress, silent
from recycle_onnx.provenance import write_source
from recycle_onnx.untrusted import open_regular

AnySource = Path | GgufSource | HubModel
"""What may have been named: a folder, or what becomes one."""
MAGIC = b"GGUF"
"""The first bytes tell a GGUF file, whatever its name ends with."""
FOLDERS_FILES = ("config.json", "recycle.json")
"""What tells a folder of a model: one of these lies in it."""


@dataclass(frozen=True)
class NamedBase:
    """A base as the user named it.

    Args:
        name: a path, or a hub id.
        revision: a hub model's branch, tag or commit.
        adapter: the folder of an adapter to merge into the base.
    """

    name: str
    revision: str | None = None
    adapter: Path | None = None

    def inputs(self) -> list[Path]:
        """Return what must not be replaced: what was named, and the user's own folders."""
        paths = [Path(self.name), *([] if self.adapter is None else [self.adapter]), *users_folders()]
        return [path for path in paths if path.exists()]


class Source(Protocol):
    """A base that is not a folder yet."""

    @property
    def name(self) -> str:
        """The name for the folder."""

    def write(self, folder: Path, *, link: bool = False) -> None:
        """Fill the empty `folder` with the base, in Hugging Face layout, and with `source.json`.

        With `link` the folder is only read for a while, and its weights may stay where they are.
        """


def find(named: NamedBase, note: Note, progress: Progress) -> AnySource:
    """Return a folder as a path, whether it exists or not; anything else as a source. The adapter is left alone.

    Raises:
        InputError: a file that is no GGUF, or `revision` without a hub id.
    """
    path = Path(named.name)
    hub = not path.exists() and is_hub_id(named.name)
    if named.revision is not None and not hub:
        raise InputError(f"--revision goes with a hub id such as org/name; {named.name} is a path")
    if hub:
        return HubModel(named.name, named.revision)
    if path.is_file() or (path.suffix.lower() == ".gguf" and not path.is_dir()):
        _refuse_other_files(path)
        return GgufSource(path, note, progress)
    return path


def _refuse_other_files(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a GGUF model")
    with open_regular(path) as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        named_gguf = path.suffix.lower() == ".gguf"
        if not named_gguf and any((path.parent / name).is_file() for name in FOLDERS_FILES):
            raise InputError(f"{path}: a file of a folder that holds a model; give the folder, {path.parent}")
        raise InputError(f"{path}: no such folder, and as a file not a GGUF (it starts with {start!r}, not {MAGIC!r})")


@contextmanager
def attached_to(
    named: NamedBase,
    out: Path,
    *,
    reference: bool = False,
    force: bool = False,
    keep: Sequence[Path] = (),
    note: Note = lambda _: None,
    progress: Progress = silent,
) -> Iterator[tuple[Path, Path]]:
    """Give the base's folder and the checkpoint to attach a module to, for `checkpoint.attach`.

    A folder is given as it is, with `out`. Any other base is written into a temporary sibling of `out`, to be
    attached to in place; it becomes `out` when the block ends well. With `reference` a hub model stays in the hub's
    cache, and the weights of a GGUF file in the file. `keep` is what replacing `out` may not delete. The
    adapter is merged into a base of any kind; with `reference` only when it is read.

    Raises:
        InputError: no such file or model, not one that can be read, or `out` exists (unless `force`).
    """
    source = _adapted(find(named, note, progress), named.adapter)
    if isinstance(source, Path):
        yield source, out
    elif isinstance(source, HubModel) and reference:
        yield source.snapshot(), out
        write_source(out, source.provenance())
    else:
        with new_folder(out, force=force, keep=[*named.inputs(), *keep]) as folder:
            if reference and not isinstance(source, HubModel):
                source.refer(folder, out)
            else:
                source.write(folder)
            yield folder, folder


@contextmanager
def folder_of(
    named: NamedBase,
    beside: Path,
    *,
    force: bool = False,
    note: Note = lambda _: None,
    progress: Progress = silent,
) -> Iterator[Path]:
    """Give a checkpoint's folder to read: the one that was named, or a temporary one beside the bundle-to-be `beside`.

    (A temporary one holds no weights: it refers to the GGUF file, or links to the hub's cache; and to the adapter,
    which is merged when they are read.)

    Raises:
        InputError: no such file or model, not one that can be read, or `beside` exists (unless `force`); an adapter
            for a checkpoint whose module was made for its base without one.
    """
    base, adapter = find(named, note, progress), named.adapter
    if adapter and isinstance(base, Path) and (base / "recycler").exists():
        raise InputError(
            f"{base}: has a module for its base as it is, and --adapter changes that: join them with "
            f"`recycle-onnx attach BASE OUT --module {base} --adapter {adapter}`, and export OUT"
        )
    source = _adapted(base, adapter)
    if isinstance(source, Path):
        yield source
        return
    check_target(beside, force=force, keep=named.inputs())
    with temporary_sibling(beside) as temporary:
        folder = temporary / source.name
        folder.mkdir()
        source.write(folder, link=True)
        yield folder


def _adapted(source: AnySource, adapter: Path | None) -> AnySource | AdaptedSource:
    return source if adapter is None else AdaptedSource(source, adapter)

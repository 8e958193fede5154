"""From what the user named to a folder: a path that exists wins, and only then a name may be a hub id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recycle_onnx.checkpoint.sources.hub import HubModel, is_hub_id
from recycle_onnx.errors import InputError
from recycle_onnx.files import check_target, new_folder, temporary_sibling, users_folders
from recycle_onnx.progress import Progress, silent
from recycle_onnx.provenance import write_source
from recycle_onnx.untrusted import open_regular

Note = Callable[[str], None]
MAGIC = b"GGUF"


class Source(Protocol):
    """A base that is not a folder yet."""

    @property
    def name(self) -> str:
        """The name for the folder."""

    def write(self, folder: Path, *, link: bool = False) -> None:
        """Fill the empty `folder` with the base, in Hugging Face layout, and with `source.json`.

        With `link` the folder is only read for a while, and its weights may stay where they are.
        """


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file, to be converted."""

    path: Path
    note: Note
    progress: Progress

    @property
    def name(self) -> str:
        return self.path.stem

    def write(self, folder: Path, *, link: bool = False) -> None:
        self._convert(folder, folder if link else None)

    def refer(self, folder: Path, place: Path) -> None:
        """Fill the empty `folder`, which will lie at `place`, with all but the weights: they stay in the file."""
        self._convert(folder, place)

    def _convert(self, folder: Path, reference_at: Path | None) -> None:
        from recycle_onnx.checkpoint.sources.gguf import convert

        convert(self.path, folder, reference_at=reference_at, note=self.note, progress=self.progress)


def find(named: str, revision: str | None, note: Note, progress: Progress) -> Path | Source:
    """Return a folder as a path, whether it exists or not; anything else as a source.

    Raises:
        InputError: a file that is no GGUF, or `revision` without a hub id.
    """
    path = Path(named)
    hub = not path.exists() and is_hub_id(named)
    if revision is not None and not hub:
        raise InputError(f"--revision goes with a hub id such as org/name; {named} is a path")
    if hub:
        return HubModel(named, revision)
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
        raise InputError(f"{path}: no such folder, and as a file not a GGUF (it starts with {start!r}, not {MAGIC!r})")


@contextmanager
def attached_to(
    named: str,
    out: Path,
    *,
    revision: str | None = None,
    reference: bool = False,
    force: bool = False,
    keep: Sequence[Path] = (),
    note: Note = lambda _: None,
    progress: Progress = silent,
) -> Iterator[tuple[Path, Path]]:
    """Give the base's folder and the checkpoint to attach a module to, for `checkpoint.attach`.

    A folder is given as it is, with `out`. Any other base is written into a temporary sibling of `out`, to be
    attached to in place; it becomes `out` when the block ends well. With `reference` a hub model stays in the hub's
    cache, and the weights of a GGUF file in the file. `keep` is what replacing `out` may not delete.

    Raises:
        InputError: no such file or model, not one that can be read, or `out` exists (unless `force`).
    """
    source = find(named, revision, note, progress)
    if isinstance(source, Path):
        yield source, out
    elif isinstance(source, HubModel) and reference:
        yield source.snapshot(), out
        write_source(out, source.provenance())
    else:
        with new_folder(out, force=force, keep=[*_inputs(named), *keep]) as folder:
            if reference and isinstance(source, GgufSource):
                source.refer(folder, out)
            else:
                source.write(folder)
            yield folder, folder


@contextmanager
def folder_of(
    named: str,
    beside: Path,
    *,
    revision: str | None = None,
    force: bool = False,
    note: Note = lambda _: None,
    progress: Progress = silent,
) -> Iterator[Path]:
    """Give a checkpoint's folder to read: the one that was named, or a temporary one beside the bundle-to-be `beside`.

    (A temporary one holds no weights: it refers to the GGUF file, or links to the hub's cache.)

    Raises:
        InputError: no such file or model, not one that can be read, or `beside` exists (unless `force`).
    """
    source = find(named, revision, note, progress)
    if isinstance(source, Path):
        yield source
        return
    check_target(beside, force=force, keep=_inputs(named))
    with temporary_sibling(beside) as temporary:
        folder = temporary / source.name
        folder.mkdir()
        source.write(folder, link=True)
        yield folder


def _inputs(named: str) -> list[Path]:
    """Return what must not be replaced: the file, and the user's own folders."""
    return [path for path in (Path(named), *users_folders()) if path.exists()]

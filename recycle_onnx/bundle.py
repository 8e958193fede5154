"""A bundle: the folder that `export` writes and the runtime loads, described by its manifest `recycle.json`."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from recycle_onnx.cache import VerifiedFiles
from recycle_onnx.contract import GraphSpec, Kind
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256, write_json
from recycle_onnx.manifest_check import check_manifest, check_version
from recycle_onnx.onnx_file import weight_files
from recycle_onnx.progress import Progress, silent
from recycle_onnx.untrusted import check_inside

FORMAT = "1.0"
"""The manifest's major and minor version: another major one is refused, new minor ones add fields that old readers
ignore."""
UNNAMED = {"cache_type": None, "places": 1, "reach": None, "windows": ()}
"""Fields of a graph that are not written where they have these values."""
MANIFEST = "recycle.json"
"""Written last: a folder without it is no bundle."""
ADVISORY = (
    "tokenizer_config.json",
    "generation_config.json",
    "genai_config.json",
    "config.json",
    "chat_template.jinja",
    "source.json",
)
"""Files that users may edit: a change is worth a warning only."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """The size in bytes and the SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `recycle.json`."""

    base: dict[str, Any]
    graphs: dict[str, GraphSpec]
    files: dict[str, File]
    recycler: dict[str, Any] | None = None
    flavour: str = "ort"
    precision: str = "fp32"
    quantization: dict[str, Any] | None = None
    draft_vocabulary: list[int] | None = None
    default_strategy: str = "full"
    pooling: str | None = None
    """How hidden states become the embedding of a text, one of `POOLINGS`; None where the base's files do not say."""
    provenance: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    def __post_init__(self) -> None:
        """Tell the graphs their flavour: the manifest has it once."""
        graphs = {name: replace(spec, flavour=self.flavour) for name, spec in self.graphs.items()}
        object.__setattr__(self, "graphs", graphs)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; fields that a later minor version added are ignored.

        Raises:
            InputError: not a manifest, a future format, or a field is missing, of a wrong kind or out of range.
        """
        raw = read_json(path)
        check_version(raw.get("format"), FORMAT, path)
        try:
            check_manifest(raw)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{path}: damaged manifest ({what}); export the bundle again") from error
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        known["graphs"] = {name: _graph(spec) for name, spec in raw["graphs"].items()}
        known["files"] = {name: _known(File, file) for name, file in raw["files"].items()}
        return cls(**known)

    def write(self, path: Path) -> None:
        """Write the manifest in one step."""
        content = asdict(self)
        for spec in content["graphs"].values():
            del spec["flavour"]
            for name, usual in UNNAMED.items():
                if spec[name] == usual:
                    del spec[name]
        write_json(path, {"format": self.format, **content})

    @property
    def context_length(self) -> int:
        """Most tokens a text may have, prompt included."""
        return int(self.base["context_length"])

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The halves that there are."""
        return ("full", "recycler") if "recycler" in self.graphs else ("full",)

    @property
    def module_trained(self) -> bool:
        """Whether there is a module that was trained; a bundle that does not say so has one that was."""
        return "recycler" in self.graphs and (self.recycler or {}).get("trained_depth") != 0

    @property
    def longest_chain(self) -> int | None:
        """Most tokens that the module proposes at a time, in one run; None where it goes on by a run for each token."""
        return self.graphs["recycler"].longest_chain if "recycler" in self.graphs else None

    @property
    def halves(self) -> str:
        """Precision and module in words, such as `int8, trained module`."""
        if "recycler" not in self.graphs:
            return f"{self.precision}, no module"
        return f"{self.precision}, {'trained' if self.module_trained else 'untrained'} module"

    @property
    def strategies(self) -> tuple[str, ...]:
        """Strategies that this bundle can run."""
        needing_module = ("alternate", "verify") if "recycler" in self.graphs else ()
        return ("auto", "full", *needing_module, "lookup")


def _graph(values: dict[str, Any]) -> GraphSpec:
    spec: GraphSpec = _known(GraphSpec, values)
    return replace(spec, taps=tuple(spec.taps), windows=tuple(spec.windows))


def _known(cls: Any, values: dict[str, Any]) -> Any:
    return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def graph_file(kind: Kind | str) -> str:
    """Return the file name of a half's graph; its weights lie in the same name with `.data` behind it."""
    return "model.onnx" if kind == "full" else "recycler.onnx"


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """Return size and hash of files in `folder`."""
    return {name: File((folder / name).stat().st_size, sha256(folder / name)) for name in names}


def check_is_bundle(folder: Path) -> None:
    """Tell a damaged bundle from none at all.

    Raises:
        InputError: no folder, or no manifest in it.
    """
    try:
        there = folder.is_dir()
    except OSError as error:  # a name that is too long, or a folder above that may not be looked into
        raise InputError(f"{folder}: cannot read ({error.strerror})") from error
    if (folder / MANIFEST).exists():
        return
    if advice := _advice(folder, there):
        raise InputError(f"{folder}: {advice}")
    if not there:
        raise InputError(f"{folder}: no such folder; expected a bundle that `recycle-onnx export` wrote")
    raise InputError(f"{folder}: not a bundle (no {MANIFEST}); make one with `recycle-onnx export`")


def _advice(path: Path, is_folder: bool) -> str | None:
    """Say what somebody has named in place of a bundle, and how to run it; None where we do not know."""
    named = shlex.quote(str(path))
    run = f"`recycle-onnx run {named}` exports it once and chats, `recycle-onnx export` writes a bundle"
    if not is_folder:
        if path.is_file() and (path.parent / MANIFEST).exists():
            return f"a file of a bundle; give its folder, {path.parent}"
        return f"a GGUF file, not a bundle; {run}" if path.is_file() and path.suffix.lower() == ".gguf" else None
    if (path / "recycler").is_dir():
        return f"a checkpoint, not a bundle; {run}"
    if not (path / "config.json").is_file():
        return None
    if not {"tap", "recycle"} - read_json(path / "config.json").keys():
        return (
            f"a module without its base, not a bundle; join them: recycle-onnx attach BASE CHECKPOINT --module {named}"
        )
    return f"a Hugging Face folder, not a bundle; {run}"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked against its manifest."""

    folder: Path
    manifest: Manifest

    def __repr__(self) -> str:
        return f"<Bundle {self.name!r}: {self.manifest.halves}>"

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False, progress: Progress = silent) -> Bundle:
        """Open a bundle. Weights are hashed once and then recognised by size and time, or always with `verify`.

        `progress` is told how many bytes of its files are checked.

        Raises:
            InputError: not a bundle, a future format, or a file that is missing, was altered or lies elsewhere.
            RecycleError: a graph is none.
        """
        check_is_bundle(folder)
        check_inside(folder / MANIFEST)
        manifest = Manifest.read(folder / MANIFEST)
        required = {graph_file(kind) for kind in manifest.graphs} | {"tokenizer.json"}
        for name in sorted(required - manifest.files.keys()):
            raise InputError(f"{folder / MANIFEST}: does not list {name}; export the bundle again")
        for name in sorted(manifest.files.keys() | set(ADVISORY)):
            check_inside(folder / name)
        verified = VerifiedFiles.load()
        checked, total = 0, sum(file.bytes for file in manifest.files.values())
        for name, expected in manifest.files.items():
            progress(checked, total, f"checking {name}")
            _check_file(folder / name, expected, verified, verify=verify)
            checked += expected.bytes
        progress(total, total, "checked")
        verified.save()
        for kind in manifest.kinds:
            _check_weights_of(folder / graph_file(kind), manifest)
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """SHA-256 over the hashes of graphs and weights: the same for the same model, wherever it lies."""
        names = sorted(name for name in self.manifest.files if name.endswith((".onnx", ".data")))
        text = "".join(f"{name} {self.manifest.files[name].sha256}\n" for name in names)
        return hashlib.sha256(text.encode()).hexdigest()

    def graph(self, kind: Kind) -> Path:
        """Return the path of a half's graph."""
        return self.folder / graph_file(kind)


def _check_weights_of(graph: Path, manifest: Manifest) -> None:
    """Refuse a graph that reads weights from a file which the manifest does not list, and nobody checked."""
    for name in sorted(weight_files(graph) - manifest.files.keys()):
        raise InputError(
            f"{graph}: reads weights from {name!r:.100}, which {MANIFEST} does not list; export the bundle again"
        )


def _check_file(path: Path, expected: File, verified: VerifiedFiles, *, verify: bool) -> None:
    advisory = path.name in ADVISORY
    if not path.is_file():
        if advisory:
            logger.warning("%s is missing; it was there when the bundle was exported", path)
            return
        raise InputError(f"{path}: missing; the bundle is incomplete: copy it whole, or export it again")
    size = path.stat().st_size
    is_weights = path.suffix == ".data"
    if size == expected.bytes and is_weights and not verify and verified.knows(path, expected.sha256):
        return
    if size == expected.bytes and sha256(path) == expected.sha256:
        if is_weights:
            verified.remember(path, expected.sha256)
        return
    if advisory:
        logger.warning("%s was edited after the export", path)
        return
    what = (
        f"{size} bytes, expected {expected.bytes}" if size != expected.bytes else "another SHA-256 than the manifest's"
    )
    raise InputError(f"{path}: altered or damaged ({what}); copy the bundle again, or export it again")

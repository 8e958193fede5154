"""A checkpoint folder to a bundle, written whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.checkpoint import BaseConfig, Checkpoint, DraftVocabulary
from recycle_onnx.checkpoint.folder import TEXT_FILES
from recycle_onnx.contract import FINAL_POST, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import CALIBRATED, SOURCE, Quantization
from recycle_onnx.export.calibrated.calibrate import Calibrated, Calibration
from recycle_onnx.export.fidelity import Rounding, check_quality, measure
from recycle_onnx.export.flavours import Flavour, Precision, flavour_named
from recycle_onnx.export.full_model import build_full_model, full_spec
from recycle_onnx.export.genai import genai_config
from recycle_onnx.export.lazy import weights_of
from recycle_onnx.export.quantize_graph import GraphQuantizer
from recycle_onnx.export.quantizer import as_quantized, calibrate_for, check_text, method_of, settled, with_cost
from recycle_onnx.export.recycler import build_recycler, recycler_spec
from recycle_onnx.export.report import Report, silent
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.export.self_check import SelfCheck, check_bundle
from recycle_onnx.export.source_blocks import with_source
from recycle_onnx.files import new_folder, read_json, temporary_sibling, write_json
from recycle_onnx.provenance import read_source, write_source
from recycle_onnx.runtime.config import read_defaults
from recycle_onnx.runtime.ort.providers import why_too_old
from recycle_onnx.runtime.ort.sessions import check_threads
from recycle_onnx.stop_ids import describe_ends, stop_ids
from recycle_onnx.tokenizer import leave_out_tokens, load_tokenizer
from recycle_onnx.untrusted import copy_file

SMALL = 1_000_000_000
"""Bytes of float32 weights that are not too many to load for a comparison."""


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export: what was written, and how the graphs compared with themselves and with torch.

    For a quantized bundle that was compared with float32, `self_check` is that of the float32 graphs; `fidelity` is
    what was measured of the quantized ones.
    """

    bundle: Path
    manifest: Manifest
    self_check: SelfCheck
    fidelity: Rounding | None = None

    @property
    def opened(self) -> Bundle:
        """The bundle that was written."""
        return Bundle(self.bundle, self.manifest)


def export(
    checkpoint: Path,
    bundle: Path,
    *,
    flavour: str = "ort",
    quantization: Precision | None = None,
    draft_vocabulary: DraftVocabulary | None = None,
    prefer_source: bool = False,
    calibration: Calibration | None = None,
    text: Path | None = None,
    compare: bool | None = None,
    epsilon: bool = True,
    force: bool = False,
    force_quality: bool = False,
    threads: int | None = None,
    report: Report = silent,
) -> ExportReport:
    """Write `checkpoint` as the bundle `bundle`; without a module, one for the `full` strategy only.

    The flavour `ort` has ONNX Runtime's own operators where they are faster, `standard` those of ONNX only. A
    `draft_vocabulary` takes the place of the checkpoint's own. With `quantization` weights go from the checkpoint
    straight into the bundle, some rows at a time; with `prefer_source` by the method `source` where most of the base is
    a GGUF file's integers of no more bits. To `compare` that with float32 on `text` (see `quantize_bundle`), a
    float32 bundle is made beside it, and deleted; by default where `text` is given, or the weights take no more than
    `SMALL` bytes in float32. The method `calibrated` (see `Calibration`) needs that bundle too, and so is compared.
    Without `epsilon`, and no comparison, nothing is measured of a quantized bundle, which is for one that will soon be
    deleted. `threads` are ONNX Runtime's. `report` is told each stage as it begins, and how much of it is done.

    Raises:
        InputError: not a checkpoint, damaged or contradictory files, no such flavour, or `bundle` exists (unless
            `force`).
        RecycleError: the disk is full or not writable, the graphs failed their self-check, or a quantized bundle has
            lost more than a quarter of its perplexity (unless `force_quality`).
    """
    check_text(text)
    check_threads(threads)
    chosen = flavour_named(flavour)
    if reason := why_too_old(flavour):  # what is written is checked by running it
        raise InputError(reason)
    job = _Export(
        chosen, quantization and chosen.suited(quantization), draft_vocabulary, prefer_source,
        calibration or Calibration(), text, compare, epsilon, force_quality, threads, report,
    )  # fmt: skip
    with Checkpoint.open(checkpoint) as source, new_folder(bundle, force=force, keep=source.folders()) as folder:
        return replace(job.write(source, folder), bundle=bundle)


@dataclass(frozen=True)
class _Export:
    """The options of one export, which are known to suit each other."""

    flavour: Flavour
    quantization: Precision | None
    draft_vocabulary: DraftVocabulary | None
    prefer_source: bool
    calibration: Calibration
    text: Path | None
    compare: bool | None
    epsilon: bool
    force_quality: bool
    threads: int | None
    report: Report

    def write(self, source: Checkpoint, folder: Path) -> ExportReport:
        """Fill the empty `folder` with the bundle of `source`."""
        ends = _write_text_files(source, folder)
        draft = _choose(self.draft_vocabulary, source)
        how = self._precision(source)
        calibrates = how is not None and method_of(how) == CALIBRATED
        compares = how is not None and self._compares(source, calibrates)
        with ExitStack() as beside:
            float32 = self._in_float32(source, beside, folder) if compares or calibrates else None
            calibrated = Calibrated({}, None)
            if how is not None and float32 is not None:
                calibrated = calibrate_for(float32.opened, how, self.calibration, self.threads, self.report)
            rewriter = self.flavour.rewriter(how, self.report, calibrated.made, calibrated.vectors)
            specs = _write_graphs(source, folder, draft, self.flavour, rewriter)
            manifest = _manifest(source, specs, folder, draft, self.flavour)
            manifest.provenance["stop_ids"], eos = ends, [end["id"] for end in ends]
            if how is not None:
                manifest = _quantized(manifest, how, calibrated, rewriter, source)
            manifest.write(folder / MANIFEST)
            written, cost = Bundle(folder, manifest), None
            checked = float32.self_check if float32 else _check(source, written, eos, self.report)
            if how is not None and (compares or self.epsilon):
                cost = self._cost(written, how, float32.opened if float32 and compares else None)
        manifest.provenance["self_check"] = asdict(checked)
        manifest = manifest if cost is None else with_cost(manifest, cost)
        manifest.write(folder / MANIFEST)
        return ExportReport(folder, manifest, checked, cost)

    def _precision(self, source: Checkpoint) -> Precision | None:
        """Return the precision with a method that suits this base and its size."""
        how = self.quantization
        if how is None:
            return None
        if isinstance(how, Quantization):
            how = with_source(how, source.base_weights, preferred=self.prefer_source)
        return settled(how, self.calibration, _float32_bytes(source), self.report)

    def _compares(self, source: Checkpoint, calibrates: bool) -> bool:
        """Tell whether to compare with float32: as was asked, otherwise where that costs little."""
        if self.compare is not None:
            return self.compare
        return self.text is not None or _float32_bytes(source) <= SMALL or calibrates

    def _in_float32(self, source: Checkpoint, beside: ExitStack, folder: Path) -> ExportReport:
        """Write the float32 bundle that calibrating reads and comparing needs; it is deleted with `beside`."""
        place = beside.enter_context(temporary_sibling(folder)) / "fp32"
        vocabulary = self.draft_vocabulary
        return export(source.folder, place, flavour=self.flavour.name, draft_vocabulary=vocabulary, report=self.report)

    def _cost(self, written: Bundle, how: Precision, float32: Bundle | None) -> Rounding:
        """Measure what quantizing cost, and refuse what cost too much."""
        cost = measure(written, float32, self.text, self.report, self.threads)
        if not self.force_quality:
            check_quality(how.precision, cost, method_of(how))
        return cost


def _quantized(
    manifest: Manifest, how: Precision, calibrated: Calibrated, rewriter: Rewriter, source: Checkpoint
) -> Manifest:
    """Return the manifest with what was done to the weights, and which blocks were kept as the source had them."""
    manifest = as_quantized(manifest, how, calibrated)
    if method_of(how) != SOURCE or not isinstance(rewriter, GraphQuantizer):
        return manifest
    kept = rewriter.kept.summary(source.base_weights.files[0].name)
    return replace(manifest, quantization={**(manifest.quantization or {}), "source": kept})


def _check(source: Checkpoint, bundle: Bundle, eos: list[int], report: Report) -> SelfCheck:
    report("checking the graphs")
    reference = source.folder / "recycler" / "reference.safetensors"
    return check_bundle(bundle, reference if source.recycler else None, eos)


def _float32_bytes(source: Checkpoint) -> int:
    parts = (source.base_weights, source.recycler_weights)
    return 4 * sum(part.num_parameters() for part in parts if part is not None)


def _choose(draft_vocabulary: DraftVocabulary | None, source: Checkpoint) -> list[int] | None:
    if draft_vocabulary is None:
        return source.draft_ids
    if source.recycler is None:
        raise InputError(f"{source.folder}: has no recyclable module, and only that can have a draft vocabulary")
    return draft_vocabulary.choose(source.base_folder, source.base.vocab_size)


def _write_graphs(
    source: Checkpoint, folder: Path, draft: list[int] | None, flavour: Flavour, write: Rewriter
) -> dict[str, GraphSpec]:
    taps = source.recycler.tap if source.recycler else (FINAL_POST,)
    specs = {"full": full_spec(source.base, taps)}
    model = build_full_model(source.base, source.base_weights, taps, flavour)
    shared = weights_of(model)
    write.save(model, folder / graph_file("full"))
    if source.recycler and source.recycler_weights:
        specs["recycler"] = recycler_spec(source.recycler, source.base, draft)
        model = build_recycler(source.recycler, source.base, source.recycler_weights, shared, draft, flavour)
        write.save(model, folder / graph_file("recycler"))
    return specs


def _write_text_files(source: Checkpoint, folder: Path) -> list[dict[str, Any]]:
    """Copy tokenizer and configs, add what the runtime and genai need; give the tokens that end a text."""
    origin = source.base_folder
    tokenizer = load_tokenizer(origin)  # refuses a missing or damaged one
    for name in ("config.json", *TEXT_FILES):
        if (origin / name).exists():
            copy_file(origin / name, folder / name)
    leave_out_tokens(folder / "tokenizer.json", tokenizer, source.base.vocab_size)
    if came_from := read_source(source.folder, origin):
        write_source(folder, came_from)  # beside a module that refers to its base, or with the base
    generation = _generation_config(origin, source.base)
    named = stop_ids(origin, tokenizer)
    ids = [token for token in named if token < source.base.vocab_size]
    if ids:
        generation["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "genai_config.json", genai_config(source.base, generation.get("bos_token_id"), ids))
    return describe_ends({token: named[token] for token in ids}, tokenizer)


def _generation_config(origin: Path, base: BaseConfig) -> dict[str, Any]:
    """Return the base's generation config, with special tokens from its config where it says none."""
    path = origin / "generation_config.json"
    own = read_json(path) if path.exists() else {}
    config = read_json(origin / "config.json")
    names = ("bos_token_id", "eos_token_id")
    special = {name: config[name] for name in names if config.get(name) is not None}
    merged = {**special, **{name: value for name, value in own.items() if value is not None}}
    for name in names:
        ids = merged.get(name, [])
        for token in ids if isinstance(ids, list) else [ids]:
            if not isinstance(token, int) or not 0 <= token < base.vocab_size:
                raise InputError(f"{origin}: {name} is {token!r}; expected an id below {base.vocab_size}")
    read_defaults(path)  # refuses what would fail every run
    return merged


def _manifest(
    source: Checkpoint, specs: dict[str, GraphSpec], folder: Path, draft: list[int] | None, flavour: Flavour
) -> Manifest:
    names = sorted(path.name for path in folder.iterdir())
    return Manifest(
        base={**source.base.summary(), "parameters": source.base_weights.num_parameters()},
        recycler=_module(source, draft),
        flavour=flavour.name,
        graphs=specs,
        files=describe_files(folder, names),
        draft_vocabulary=draft,
        default_strategy="auto",
        provenance={
            "producer": f"recycle-onnx {__version__}",
            "checkpoint": source.folder.resolve().name,
            "source": read_source(source.folder, source.base_folder),
            "opset": flavour.graph.opsets[""],
            "ir_version": flavour.graph.ir_version,
        },
    )


def _module(source: Checkpoint, draft: list[int] | None) -> dict[str, Any] | None:
    """Return the module's conventions as the bundle has them, and its size."""
    if source.recycler is None or source.recycler_weights is None:
        return None
    return {
        **source.recycler.to_json(),
        "draft_vocabulary": None if draft is None else {"size": len(draft)},
        "parameters": source.recycler_weights.num_parameters(),
    }

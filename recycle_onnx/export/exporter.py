"""A checkpoint folder to a bundle, written whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.checkpoint import BaseConfig, Checkpoint, DraftVocabulary
from recycle_onnx.checkpoint.folder import TEXT_FILES
from recycle_onnx.checkpoint.pooling import read_pooling
from recycle_onnx.contract import FINAL_POST, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export import heavy
from recycle_onnx.export.block_quantizer import CALIBRATED, SOURCE, Quantization
from recycle_onnx.export.calibrated.calibrate import Calibrated, Calibration
from recycle_onnx.export.fidelity import Rounding, check_quality, measure
from recycle_onnx.export.flavours import Flavour, Precision, flavour_named
from recycle_onnx.export.full_model import build_full_model, full_spec
from recycle_onnx.export.genai import genai_config
from recycle_onnx.export.int8_cache.convert import CacheBits, check_int8_cache, to_int8_cache
from recycle_onnx.export.lazy import weights_of
from recycle_onnx.export.quantize_graph import GraphQuantizer
from recycle_onnx.export.quantizer import as_quantized, calibrate_for, check_text, method_of, settled, with_cost
from recycle_onnx.export.recycler import build_recycler, fusion_of, recycler_spec
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.export.self_check import SelfCheck, check_bundle
from recycle_onnx.export.source_blocks import refuse_rounding_again, stored_kinds, with_source
from recycle_onnx.files import new_folder, read_json, temporary_sibling, write_json
from recycle_onnx.progress import Progress, silent
from recycle_onnx.provenance import read_source, write_source
from recycle_onnx.runtime.config import read_defaults
from recycle_onnx.runtime.ort.providers import why_too_old
from recycle_onnx.runtime.ort.sessions import check_threads
from recycle_onnx.stop_ids import describe_ends, stop_ids
from recycle_onnx.tokenizer import leave_out_tokens, load_tokenizer
from recycle_onnx.untrusted import copy_file


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export: what was written, and how the graphs compared with themselves and with torch.

    For a quantized bundle that was compared with float32, `self_check` is that of the float32 graphs, unless their
    weights take more than `HEAVY` bytes; `fidelity` is what was measured of the quantized ones.
    """

    bundle: Path
    manifest: Manifest
    self_check: SelfCheck | None
    fidelity: Rounding | None = None

    @property
    def opened(self) -> Bundle:
        """The bundle that was written."""
        return Bundle(self.bundle, self.manifest)

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(file.bytes for file in self.manifest.files.values())


@dataclass(frozen=True)
class ExportOptions:
    """The choices of an export: its operators, its precision, and what is measured of it.

    Args:
        flavour: `ort` has ONNX Runtime's own operators where they are faster, `standard` those of ONNX only.
        quantization: the precision, None for float32. Weights go from the checkpoint straight into the bundle, some
            rows at a time.
        draft_vocabulary: takes the place of the checkpoint's own.
        prefer_source: quantize by the method `source` where most of the base is somebody's integers of no more bits,
            and refuse to round such integers a second time.
        calibration: for the method `calibrated`, which needs a float32 bundle too, and so is compared.
        text: what to compare on; None for a page of plain English.
        compare: measure against float32, for which a float32 bundle is made beside it, and deleted. None does so where
            there is a `text`, or the weights take no more than `HEAVY` bytes in float32.
        epsilon: without it, and without a comparison, nothing is measured of a quantized bundle: for one that will
            soon be deleted.
        force_quality: write it even if perplexity rises by more than a quarter.
        check: run both graphs once. Without it, for a float32 bundle that is only read layer by layer, and deleted.
        threads: ONNX Runtime's, None for one a physical core.
        module_window: let the module see so many rows only, its own included; None for what the checkpoint says.
        kv: `int8` for keys and values in eight bits, which a CPU reads in half the time; None for floats.
    """

    flavour: str = "ort"
    quantization: Precision | None = None
    draft_vocabulary: DraftVocabulary | None = None
    prefer_source: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    text: Path | None = None
    compare: bool | None = None
    epsilon: bool = True
    check: bool = True
    force_quality: bool = False
    threads: int | None = None
    module_window: int | None = None
    kv: CacheBits | None = None


def export(
    checkpoint: Path,
    bundle: Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    report: Progress = silent,
) -> ExportReport:
    """Write `checkpoint` as the bundle `bundle`; without a module, one for the `full` strategy only.

    `report` is told each stage as it begins, and how much of it is finished; a total of 0 is unknown.

    Raises:
        InputError: not a checkpoint, damaged or contradictory files, no such flavour, or `bundle` exists (unless
            `force`).
        RecycleError: the disk is full or not writable, the graphs failed their self-check, or a quantized bundle has
            lost more than a quarter of its perplexity (unless `force_quality`).
    """
    options = options or ExportOptions()
    check_text(options.text)
    check_threads(options.threads)
    flavour = flavour_named(options.flavour)
    if reason := why_too_old(options.flavour):  # what is written is checked by running it
        raise InputError(reason)
    options = replace(options, quantization=options.quantization and flavour.suited(options.quantization))
    if options.kv is not None:
        how = options.quantization
        check_int8_cache(options.flavour, "float32" if how is None else how.float_type)
    job = _Export(flavour, options, report)
    with Checkpoint.open(checkpoint) as opened, new_folder(bundle, force=force, keep=opened.folders()) as folder:
        return replace(job.write(_with_window(opened, options.module_window), folder), bundle=bundle)


@dataclass(frozen=True)
class _Export:
    """One export, whose options are known to suit each other."""

    flavour: Flavour
    options: ExportOptions
    report: Progress

    def write(self, checkpoint: Checkpoint, folder: Path) -> ExportReport:
        """Fill the empty `folder` with the bundle of `checkpoint`."""
        options = self.options
        ends, pooling = _write_text_files(checkpoint, folder), read_pooling(checkpoint.base_folder)
        draft = _choose(options.draft_vocabulary, checkpoint)
        how = self._precision(checkpoint)
        calibrates = how is not None and method_of(how) == CALIBRATED
        compares = how is not None and self._compares(checkpoint, calibrates)
        with ExitStack() as beside:
            float32 = self._in_float32(checkpoint, beside, folder) if compares or calibrates else None
            calibrated = Calibrated({}, None)
            if how is not None and float32 is not None:
                calibrated = calibrate_for(float32.opened, how, options.calibration, options.threads, self.report)
            rewriter = self.flavour.rewriter(how, self.report, calibrated.made, calibrated.vectors)
            specs = _write_graphs(checkpoint, folder, draft, self.flavour, rewriter)
            manifest = replace(_manifest(checkpoint, specs, folder, draft, self.flavour), pooling=pooling)
            manifest.provenance["stop_ids"], eos = ends, [end["id"] for end in ends]
            if how is not None:
                manifest = _quantized(manifest, how, calibrated, rewriter, checkpoint)
            manifest.write(folder / MANIFEST)
            written, cost = Bundle(folder, manifest), None
            checked = None if float32 is None else float32.self_check
            if checked is None and options.check:
                torch = options.module_window is None
                checked = _check(checkpoint, written, eos, self.report, torch=torch)
            if options.kv is not None:
                manifest = to_int8_cache(folder, manifest, options.threads, self.report)
                written = Bundle(folder, manifest)
                check_bundle(written, None, eos)
            if how is not None and (compares or options.epsilon):
                cost = self._cost(written, how, float32.opened if float32 and compares else None)
        if checked is not None:
            manifest.provenance["self_check"] = asdict(checked)
        manifest = manifest if cost is None else with_cost(manifest, cost)
        manifest.write(folder / MANIFEST)
        return ExportReport(folder, manifest, checked, cost)

    def _precision(self, checkpoint: Checkpoint) -> Precision | None:
        """Return the precision with a method that suits this base and its size."""
        how = self.options.quantization
        if how is None:
            return None
        if isinstance(how, Quantization):
            how = with_source(how, checkpoint.base_weights, preferred=self.options.prefer_source)
            if self.options.prefer_source:
                refuse_rounding_again(how, checkpoint.base_weights)
        return settled(how, self.options.calibration, _float32_bytes(checkpoint), self.report)

    def _compares(self, checkpoint: Checkpoint, calibrates: bool) -> bool:
        """Tell whether to compare with float32: as was asked, otherwise where that costs little."""
        if self.options.compare is not None:
            return self.options.compare
        return self.options.text is not None or _float32_bytes(checkpoint) <= heavy.HEAVY or calibrates

    def _in_float32(self, checkpoint: Checkpoint, beside: ExitStack, folder: Path) -> ExportReport:
        """Write the float32 bundle that calibrating reads and comparing needs; it is deleted with `beside`.

        A heavy one is not checked, for it would be in memory whole: what is made of it is.
        """
        place = beside.enter_context(temporary_sibling(folder)) / "fp32"
        same = ExportOptions(
            self.flavour.name,
            draft_vocabulary=self.options.draft_vocabulary,
            module_window=self.options.module_window,
            check=_float32_bytes(checkpoint) <= heavy.HEAVY,
        )
        return export(checkpoint.folder, place, same, report=self.report)

    def _cost(self, written: Bundle, how: Precision, float32: Bundle | None) -> Rounding:
        """Measure what quantizing cost, and refuse what cost too much."""
        cost = measure(written, float32, self.options.text, self.report, self.options.threads)
        if not self.options.force_quality:
            check_quality(how.precision, cost, method_of(how))
        return cost


def _quantized(
    manifest: Manifest, how: Precision, calibrated: Calibrated, rewriter: Rewriter, checkpoint: Checkpoint
) -> Manifest:
    """Return the manifest with what was done to the weights, and which blocks were kept as the source had them."""
    manifest = as_quantized(manifest, how, calibrated)
    if method_of(how) != SOURCE or not isinstance(rewriter, GraphQuantizer):
        return manifest
    kept = rewriter.kept.summary(checkpoint.base_weights.weights.where.name)
    return replace(manifest, quantization={**(manifest.quantization or {}), "source": kept})


def _check(checkpoint: Checkpoint, bundle: Bundle, eos: list[int], report: Progress, *, torch: bool) -> SelfCheck:
    """Check a bundle, against `torch` too where a training has left what to compare with."""
    report(0, 0, "checking the graphs")
    reference = checkpoint.folder / "recycler" / "reference.safetensors"
    return check_bundle(bundle, reference if torch and checkpoint.recycler else None, eos)


def _float32_bytes(checkpoint: Checkpoint) -> int:
    parts = (checkpoint.base_weights, checkpoint.recycler_weights)
    return 4 * sum(part.num_parameters() for part in parts if part is not None)


def _with_window(checkpoint: Checkpoint, window: int | None) -> Checkpoint:
    """Return the checkpoint with a module that sees so many rows; trained without a window, it can have one too."""
    if window is None:
        return checkpoint
    if checkpoint.recycler is None:
        raise InputError(f"{checkpoint.folder}: has no recyclable module, and only that can have a window")
    if window < 1:
        raise InputError(f"--module-window is {window}; expected at least 1 row")
    return replace(checkpoint, recycler=replace(checkpoint.recycler, window=window))


def _choose(draft_vocabulary: DraftVocabulary | None, checkpoint: Checkpoint) -> list[int] | None:
    if draft_vocabulary is None:
        return checkpoint.draft_ids
    if checkpoint.recycler is None:
        raise InputError(f"{checkpoint.folder}: has no recyclable module, and only that can have a draft vocabulary")
    if checkpoint.recycler.lm_head == "own":
        raise InputError(f"{checkpoint.folder}: its module has an LM head of its own; leave --draft-vocab out")
    return draft_vocabulary.choose(checkpoint.base_folder, checkpoint.base.vocab_size)


def _write_graphs(
    checkpoint: Checkpoint, folder: Path, draft: list[int] | None, flavour: Flavour, write: Rewriter
) -> dict[str, GraphSpec]:
    module, module_weights, fuse = checkpoint.recycler, checkpoint.recycler_weights, None
    taps: tuple[str, ...] = (FINAL_POST,)
    if module and module_weights:
        taps, fuse = module.tap, fusion_of(module, checkpoint.base, module_weights)
    specs = {"full": full_spec(checkpoint.base, module.states if module else taps)}
    model = build_full_model(checkpoint.base, checkpoint.base_weights, taps, flavour, fuse)
    shared = weights_of(model)
    write.save(model, folder / graph_file("full"))
    if module and module_weights:
        specs["recycler"] = recycler_spec(module, checkpoint.base, draft)
        model = build_recycler(module, checkpoint.base, module_weights, shared, draft, flavour)
        write.save(model, folder / graph_file("recycler"))
    return specs


def _write_text_files(checkpoint: Checkpoint, folder: Path) -> list[dict[str, Any]]:
    """Copy tokenizer and configs, add what the runtime and genai need; give the tokens that end a text."""
    origin = checkpoint.base_folder
    tokenizer = load_tokenizer(origin)  # refuses a missing or damaged one
    for name in ("config.json", *TEXT_FILES):
        if (origin / name).exists():
            copy_file(origin / name, folder / name)
    leave_out_tokens(folder / "tokenizer.json", tokenizer, checkpoint.base.vocab_size)
    if came_from := read_source(checkpoint.folder, origin):
        write_source(folder, came_from)  # beside a module that refers to its base, or with the base
    generation = _generation_config(origin, checkpoint.base)
    named = stop_ids(origin, tokenizer)
    # A tokenizer may know more tokens than the model has rows for; those never come.
    ids = [token for token in named if token < checkpoint.base.vocab_size]
    if ids:
        generation["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "genai_config.json", genai_config(checkpoint.base, generation.get("bos_token_id"), ids))
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
    checkpoint: Checkpoint, specs: dict[str, GraphSpec], folder: Path, draft: list[int] | None, flavour: Flavour
) -> Manifest:
    names = sorted(path.name for path in folder.iterdir())
    return Manifest(
        base={**checkpoint.base.summary(), "parameters": checkpoint.base_weights.num_parameters()},
        recycler=_module(checkpoint, draft),
        flavour=flavour.name,
        graphs=specs,
        files=describe_files(folder, names),
        draft_vocabulary=draft,
        default_strategy="auto",
        provenance={
            "producer": f"recycle-onnx {__version__}",
            "checkpoint": checkpoint.folder.resolve().name,
            "source": read_source(checkpoint.folder, checkpoint.base_folder),
            "stored_as": stored_kinds(checkpoint.base_weights),
            "opset": flavour.graph.opsets[""],
            "ir_version": flavour.graph.ir_version,
        },
    )


def _module(checkpoint: Checkpoint, draft: list[int] | None) -> dict[str, Any] | None:
    """Return the module's conventions as the bundle has them, and its size."""
    if checkpoint.recycler is None or checkpoint.recycler_weights is None:
        return None
    return {
        **checkpoint.recycler.to_json(),
        "draft_vocabulary": None if draft is None else {"size": len(draft)},
        "parameters": checkpoint.recycler_weights.num_parameters(),
    }

"""A checkpoint folder to a bundle, written whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from recycle_onnx import __version__
from recycle_onnx.bundle import MANIFEST, Bundle, Manifest, describe_files, graph_file
from recycle_onnx.checkpoint import BaseConfig, Checkpoint, DraftVocabulary
from recycle_onnx.checkpoint.folder import TEXT_FILES
from recycle_onnx.contract import FINAL_POST, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import Quantization
from recycle_onnx.export.external_data import ExternalDataWriter
from recycle_onnx.export.fidelity import Fidelity
from recycle_onnx.export.full_model import build_full_model, full_spec
from recycle_onnx.export.genai import genai_config
from recycle_onnx.export.graph import IR_VERSION, OPSET
from recycle_onnx.export.half_precision import HalfPrecision
from recycle_onnx.export.quantizer import quantize_bundle
from recycle_onnx.export.recycler import build_recycler, recycler_spec
from recycle_onnx.export.report import Report
from recycle_onnx.export.self_check import SelfCheck, check_bundle
from recycle_onnx.files import check_target, new_folder, read_json, temporary_sibling, write_json
from recycle_onnx.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how the graphs compared with themselves and with torch."""

    bundle: Path
    manifest: Manifest
    self_check: SelfCheck
    fidelity: Fidelity | None = None


def export(
    checkpoint: Path,
    bundle: Path,
    *,
    quantization: Quantization | HalfPrecision | None = None,
    draft_vocabulary: DraftVocabulary | None = None,
    text: Path | None = None,
    force: bool = False,
    report: Report = lambda _: None,
) -> ExportReport:
    """Write `checkpoint` as the bundle `bundle`; without a module, one for the `full` strategy only.

    A `draft_vocabulary` takes the place of the checkpoint's own. With `quantization` a float32 bundle is made beside
    it, quantized and compared on `text` (see `quantize_bundle`), and deleted. `report` is told each stage as it begins.

    Raises:
        InputError: not a checkpoint, damaged or contradictory files, or `bundle` exists (unless `force`).
        RecycleError: the disk is full or not writable, or the graphs failed their self-check.
    """
    if quantization is None:
        return _export(checkpoint, bundle, draft_vocabulary, force, report)
    with Checkpoint.open(checkpoint) as source:
        check_target(bundle, force=force, keep=source.folders())
    with temporary_sibling(bundle) as beside:
        done = _export(checkpoint, beside / "fp32", draft_vocabulary, False, report)
        manifest, fidelity = quantize_bundle(
            beside / "fp32", bundle, quantization, text=text, force=force, report=report
        )
    return ExportReport(bundle, manifest, done.self_check, fidelity)


def _export(
    checkpoint: Path, bundle: Path, draft_vocabulary: DraftVocabulary | None, force: bool, report: Report
) -> ExportReport:
    with Checkpoint.open(checkpoint) as source, new_folder(bundle, force=force, keep=source.folders()) as folder:
        eos = _write_text_files(source, folder)
        draft = _choose(draft_vocabulary, source)
        specs = _write_graphs(source, folder, draft, report)
        manifest = _manifest(source, specs, folder, draft)
        manifest.write(folder / MANIFEST)
        report("checking the graphs")
        reference = source.folder / "recycler" / "reference.safetensors"
        checked = check_bundle(Bundle(folder, manifest), reference if source.recycler else None, eos)
        manifest.provenance["self_check"] = asdict(checked)
        manifest.write(folder / MANIFEST)
    return ExportReport(bundle, manifest, checked)


def _choose(draft_vocabulary: DraftVocabulary | None, source: Checkpoint) -> list[int] | None:
    if draft_vocabulary is None:
        return source.draft_ids
    if source.recycler is None:
        raise InputError(f"{source.folder}: has no recyclable module, and only that can have a draft vocabulary")
    return draft_vocabulary.choose(source.base_folder, source.base.vocab_size)


def _write_graphs(source: Checkpoint, folder: Path, draft: list[int] | None, report: Report) -> dict[str, GraphSpec]:
    taps = source.recycler.tap if source.recycler else (FINAL_POST,)
    specs = {"full": full_spec(source.base, taps)}
    report("writing model.onnx")
    with ExternalDataWriter(folder / "model.onnx.data") as writer:
        model = build_full_model(source.base, source.base_weights, writer, taps)
        shared = dict(writer.tensors)
    ir.save(model, folder / graph_file("full"))
    if source.recycler and source.recycler_weights:
        specs["recycler"] = recycler_spec(source.recycler, source.base, draft)
        report("writing recycler.onnx")
        with ExternalDataWriter(folder / "recycler.onnx.data") as writer:
            model = build_recycler(source.recycler, source.base, source.recycler_weights, writer, shared, draft)
        ir.save(model, folder / graph_file("recycler"))
    return specs


def _write_text_files(source: Checkpoint, folder: Path) -> list[int]:
    """Copy tokenizer and configs, add what the runtime and genai need; give the ids that end a text."""
    origin = source.base_folder
    load_tokenizer(origin)  # refuses a missing or damaged one
    for name in ("config.json", *TEXT_FILES):
        if (origin / name).exists():
            shutil.copyfile(origin / name, folder / name)
    generation = _generation_config(origin, source.base)
    write_json(folder / "generation_config.json", generation)
    eos = generation.get("eos_token_id")
    ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    write_json(folder / "genai_config.json", genai_config(source.base, generation.get("bos_token_id"), ids))
    return ids


def _generation_config(origin: Path, base: BaseConfig) -> dict[str, Any]:
    """The base's generation config, with special tokens from its config where it says none."""
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
    return merged


def _manifest(source: Checkpoint, specs: dict[str, GraphSpec], folder: Path, draft: list[int] | None) -> Manifest:
    names = sorted(path.name for path in folder.iterdir())
    return Manifest(
        base={**source.base.summary(), "parameters": source.base_weights.num_parameters()},
        recycler=_module(source, draft),
        graphs=specs,
        files=describe_files(folder, names),
        draft_vocabulary=draft,
        default_strategy="auto",
        provenance={
            "producer": f"recycle-onnx {__version__}",
            "checkpoint": source.folder.resolve().name,
            "opset": OPSET,
            "ir_version": IR_VERSION,
        },
    )


def _module(source: Checkpoint, draft: list[int] | None) -> dict[str, Any] | None:
    """The module's conventions as the bundle has them, and its size."""
    if source.recycler is None or source.recycler_weights is None:
        return None
    return {
        **source.recycler.to_json(),
        "draft_vocabulary": None if draft is None else {"size": len(draft)},
        "parameters": source.recycler_weights.num_parameters(),
    }

"""`recycle-onnx inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.bundle import MANIFEST, Bundle, Manifest
from recycle_onnx.cli.fidelity import fidelity_line, method_line
from recycle_onnx.cli.report import as_json, shown
from recycle_onnx.provenance import read_source
from recycle_onnx.runtime.config import read_defaults
from recycle_onnx.stop_ids import describe_ends, stop_ids
from recycle_onnx.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from recycle_onnx.checkpoint import Module

CONVENTIONS = (
    "layer", "tap", "concat", "norms_before_projection", "final_norm", "recycle", "window", "qk_norm", "embedding",
    "lm_head", "draft_vocabulary", "trained_depth",
)  # fmt: skip


@click.command()
@click.argument("path", type=Path, metavar="FOLDER")
@click.option("--verify", is_flag=True, help="Hash every file of a bundle, weights included.")
@click.option("--plot", type=Path, help="Draw the curves of a checkpoint's last training; needs matplotlib.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def inspect(path: Path, verify: bool, plot: Path | None, json_: bool) -> None:
    """Say what a checkpoint, a bundle or a published module is: dimensions, conventions, bytes and contracts."""
    description = _describe(path, verify)
    if plot:
        from recycle_onnx.picture import check_plot
        from recycle_onnx.training.curves import write_curves

        check_plot(plot)
        write_curves(path, plot)
    if json_:
        click.echo(as_json(description))
        return
    table = Table(title=shown(f"{path}: a {description['kind']}"), show_header=False, title_justify="left")
    for name, value in _rows(description):
        table.add_row(shown(name), shown(value))
    Console().print(table)


def _describe(path: Path, verify: bool) -> dict[str, Any]:
    if (path / MANIFEST).exists():
        return _describe_bundle(path, verify)
    from recycle_onnx.checkpoint import Module

    return _describe_module(Module.open(path)) if Module.is_one(path) else _describe_checkpoint(path)


def _describe_bundle(path: Path, verify: bool) -> dict[str, Any]:
    manifest = Bundle.open(path, verify=verify).manifest
    ends = read_defaults(path / "generation_config.json").stop_ids or ()
    return {
        "kind": "bundle",
        "format": manifest.format,
        "flavour": manifest.flavour,
        "precision": manifest.precision,
        "quantization": manifest.quantization,
        "draft_vocabulary": manifest.draft_vocabulary and len(manifest.draft_vocabulary),
        "strategies": list(manifest.strategies),
        **_halves(manifest.base, manifest.recycler),
        "bytes": {name: file.bytes for name, file in manifest.files.items()},
        "module_trained": manifest.module_trained if "recycler" in manifest.graphs else None,
        "stop_ids": [_end(token, manifest) for token in ends],
        "contracts": _contracts(manifest),
        "provenance": manifest.provenance,
        "source": read_source(path),
        "verified": verify,
    }


def _end(token: int, manifest: Manifest) -> dict[str, Any]:
    """Return what the export recorded of a token that ends a text; an unknown one was added to the file since."""
    unknown = {"id": token, "token": None, "named_by": ["generation_config.json eos_token_id"]}
    return next((end for end in manifest.provenance.get("stop_ids", ()) if end["id"] == token), unknown)


def _contracts(manifest: Manifest) -> dict[str, Any]:
    """Return the inputs and outputs of each graph as `type[dimensions]`."""

    def shown(tensors: dict[str, Any]) -> dict[str, str]:
        return {name: f"{t.dtype}[{', '.join(map(str, t.shape))}]" for name, t in tensors.items()}

    return {
        name: {
            "inputs": shown(spec.inputs()),
            "optional_inputs": shown(spec.optional_inputs()),
            "outputs": shown(spec.outputs()),
        }
        for name, spec in manifest.graphs.items()
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from recycle_onnx.checkpoint import Checkpoint

    with Checkpoint.open(path) as checkpoint:
        base = {**checkpoint.base.summary(), "parameters": checkpoint.base_weights.num_parameters()}
        recycler = None
        files = list(checkpoint.base_weights.files)
        if checkpoint.recycler and checkpoint.recycler_weights:
            recycler = {**checkpoint.recycler.to_json(), "parameters": checkpoint.recycler_weights.num_parameters()}
            files += checkpoint.recycler_weights.files
        sizes = {
            str(file.relative_to(path)) if file.is_relative_to(path) else str(file): file.stat().st_size
            for file in files
        }
        source = read_source(path, checkpoint.base_folder)
        trained = checkpoint.recycler.trained if checkpoint.recycler else None
        halves = {**_halves(base, recycler), "module_trained": trained}
        ends = _ends(checkpoint.base_folder)
        return {"kind": "checkpoint", **halves, "bytes": sizes, "source": source, "stop_ids": ends}


def _ends(folder: Path) -> list[dict[str, Any]]:
    """Return the tokens that end a text of a checkpoint; none of one without a tokenizer."""
    if not (folder / "tokenizer.json").exists():
        return []
    tokenizer = load_tokenizer(folder)
    return describe_ends(stop_ids(folder, tokenizer), tokenizer)


def _describe_module(module: Module) -> dict[str, Any]:
    """Describe a published module by the base it was made for, whose number of parameters is not known here."""
    weights = module.weights()
    return {
        "kind": "module",
        "base": module.base().summary(),
        "recycler": {**module.config.to_json(), "parameters": weights.num_parameters()},
        "parameter_ratio": None,
        "module_trained": module.config.trained,
        "bytes": {file.name: file.stat().st_size for file in weights.files},
        "source": module.trained_on.source,
    }


def _halves(base: dict[str, Any], recycler: dict[str, Any] | None) -> dict[str, Any]:
    whole, part = base.get("parameters"), recycler and recycler.get("parameters")
    ratio = part / whole if whole and part else None
    return {"base": base, "recycler": recycler, "parameter_ratio": ratio}


def _rows(description: dict[str, Any]) -> list[tuple[str, str]]:
    base, recycler = description["base"], description["recycler"]
    rows: list[tuple[str, str]] = [
        (name, str(description[name])) for name in ("format", "flavour", "precision") if name in description
    ]
    rows += [
        ("base", base["model_type"] + (f", {base['parameters']:,} parameters" if "parameters" in base else "")),
        ("dimensions", f"{base['num_layers']} layers of {base['hidden_size']}, {base['num_heads']} heads "
         f"({base['num_kv_heads']} KV) of {base['head_dim']}, feed-forward {base['intermediate_size']}"),
        ("vocabulary", f"{base['vocab_size']:,}{', tied embeddings' * base['tied_embeddings']}"),
        ("context", f"{base['context_length']:,} tokens"),
    ]  # fmt: skip
    if source := description["source"]:
        known = {name: value for name, value in source.items() if name != "stop_ids" and value is not None}
        rows += [(f"source {name}", _text(value)) for name, value in known.items()]
    for end in description.get("stop_ids", ()):
        rows.append((f"ends at {end['id']} {end['token'] or ''}", ", ".join(end["named_by"])))
    if quantization := description.get("quantization"):
        summarized = ("fidelity", "calibration")
        rows += [
            (f"quantization {name}", _text(value)) for name, value in quantization.items() if name not in summarized
        ]
        if made := method_line(quantization):
            rows.append(("calibration", made))
        if cost := quantization.get("fidelity"):
            rows.append(("fidelity", fidelity_line(description["precision"], quantization)))
            rows += [(f"fidelity {name}", _text(value)) for name, value in cost.items()]
    if size := description.get("draft_vocabulary"):
        rows.append(("draft vocabulary", f"{size:,} tokens"))
    if recycler:
        ratio = f" ({description['parameter_ratio']:.1%} of the base)" if description["parameter_ratio"] else ""
        untrained = "" if description["module_trained"] else ", untrained"
        rows.append(
            (
                "module",
                f"layers {recycler.get('num_layers')}, {recycler.get('parameters', 0):,} parameters{ratio}{untrained}",
            )
        )
        rows += [(f"module {name}", _text(recycler.get(name))) for name in CONVENTIONS]
    else:
        rows.append(("module", "none"))
    if "strategies" in description:
        rows.append(("strategies", ", ".join(description["strategies"])))
    rows += [(f"bytes {name}", f"{size:,}") for name, size in description["bytes"].items()]
    for graph, contract in description.get("contracts", {}).items():
        for part in ("inputs", "optional_inputs", "outputs"):
            lines = [f"{name}: {kind}" for name, kind in contract[part].items() if ".0." in name or "." not in name]
            rows.append((f"{graph} {part.replace('_', ' ')}", "\n".join(lines)))
    return rows


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{name}: {part}" for name, part in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

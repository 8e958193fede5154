"""`recycle-onnx inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.bundle import MANIFEST, Bundle, Manifest
from recycle_onnx.cli.inspect_view import rows
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, shown
from recycle_onnx.doctor.needs import cache_bytes
from recycle_onnx.provenance import read_source
from recycle_onnx.runtime.config import read_defaults
from recycle_onnx.runtime.decoding.window_rows import WindowRows
from recycle_onnx.stop_ids import describe_ends, stop_ids
from recycle_onnx.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from recycle_onnx.checkpoint import Module
    from recycle_onnx.checkpoint.base_weights import BaseWeights


@click.command()
@click.argument("path", type=PATH, metavar="FOLDER")
@click.option("--verify", is_flag=True, help="Hash every file of a bundle, weights included.")
@click.option("--graphs", is_flag=True, help="Show the inputs and outputs of a bundle's graphs too.")
@click.option("--matrices", is_flag=True, help="Show of each matrix of a base how it is stored and computed.")
@click.option("--plot", type=PATH, help="Draw the curves of a checkpoint's last training; needs matplotlib.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def inspect(path: Path, verify: bool, graphs: bool, matrices: bool, plot: Path | None, json_: bool) -> None:
    """Say what a checkpoint, a bundle or a published module is, and whether its module is trained."""
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
    for name, value in rows(description, graphs=graphs, matrices=matrices):
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
        "kv": manifest.graphs["full"].cache_type or manifest.graphs["full"].float_type,
        "kv_bytes_per_token": sum(spec.row_bytes for spec in manifest.graphs.values()),
        "kv_bytes_of_context": cache_bytes(manifest, manifest.context_length),
        "kv_window_rows": _window_rows(manifest),
        "matrices": ((manifest.quantization or {}).get("source") or {}).get("matrices"),
        "draft_vocabulary": manifest.draft_vocabulary and len(manifest.draft_vocabulary),
        "strategies": list(manifest.strategies),
        "pooling": manifest.pooling,
        **_halves(manifest.base, manifest.recycler),
        "bytes": {name: file.bytes for name, file in manifest.files.items()},
        "module_trained": manifest.module_trained if "recycler" in manifest.graphs else None,
        "stop_ids": [_end(token, manifest) for token in ends],
        "contracts": _contracts(manifest),
        "provenance": manifest.provenance,
        "source": read_source(path),
        "verified": verify,
    }


def _window_rows(manifest: Manifest) -> int | None:
    """Return the tokens after which layers with a window take no more memory; None where there are no such layers."""
    rows = [rows.most for spec in manifest.graphs.values() if (rows := WindowRows.of(spec)) is not None]
    return max(rows, default=None)


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
        matrices = _stored(checkpoint.base_weights)
        return {
            "kind": "checkpoint", **halves, "matrices": matrices, "bytes": sizes, "source": source, "stop_ids": ends,
        }  # fmt: skip


def _stored(weights: BaseWeights) -> dict[str, dict[str, str]]:
    """Return what each of the base's matrices is stored as."""
    names = (name for name, shape in weights.shapes.items() if len(shape) > 1)
    return {name: {"stored": weights.integer_type(name) or weights.stored_type(name)} for name in names}


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

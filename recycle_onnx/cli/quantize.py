"""`recycle-onnx quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from recycle_onnx.cli.fidelity import fidelity_line, fidelity_table, method_line
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.quantization import KV, QuantizationChoices, calibrating
from recycle_onnx.cli.report import as_json, echo, stages

if TYPE_CHECKING:
    from recycle_onnx.bundle import Manifest
    from recycle_onnx.export import Quantization, QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class QuantizeChoices(QuantizationChoices):
    """The options of `quantize`, by their names."""

    bits: int
    block_size: int | None
    symmetric: bool
    keep: str | None
    compare: bool

    def quantization(self) -> Quantization:
        """Return how weights are to be stored."""
        from recycle_onnx.export import Quantization

        parts = None if self.keep is None else tuple(part.strip() for part in self.keep.split(",") if part.strip())
        return Quantization(
            self.bits, self.block_size or 0, self.symmetric, self.method_for(self.bits), parts, self.activations
        )

    def options(self, how: Quantization) -> QuantizeOptions:
        """Return what to calibrate with, and what to measure."""
        from recycle_onnx.export import QuantizeOptions

        return QuantizeOptions(
            self.calibration(how), self.text, self.compare, self.force_quality, self.threads, self.kv
        )


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@click.option("--bits", type=int, default=4, show_default=True, help="Bits of a weight: 4 or 8.")
@click.option("--block-size", type=int, help="Weights that share a scale.  [default: 32 for 4 bits, 64 for 8]")
@click.option(
    "--symmetric/--asymmetric", default=False, show_default=True, help="Blocks without a zero point, or with."
)
@click.option(
    "--method",
    default="",
    help="calibrated, mse or rtn.  [default: calibrated for 4 bits, mse above 2.5 GB of float32 weights; rtn for 8]",
)
@calibrating
@click.option(
    "--keep",
    help="Parts with 8 bits instead of 4, or float32 instead of 8.  [default: projection, and of 4 bits embed_tokens "
    "and lm_head]",
)
@click.option(
    "--activations",
    default="fp32",
    show_default=True,
    help="fp32 or fp16: what is not quantized, hidden states and caches. fp16 is for GPUs.",
)
@KV
@click.option("--text", type=PATH, help="Text to measure the cost on.  [default: a page of plain English]")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Load BUNDLE too, measure the cost.")
@click.option("--report", "table", is_flag=True, help="Print what it costs as a table.")
@click.option("--threads", type=int, help="Threads of ONNX Runtime.  [default: one a physical core]")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--force-quality", is_flag=True, help="Write OUT even if perplexity rises by more than 25 %.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def quantize(bundle: Path, out: Path, force: bool, table: bool, json_: bool, **choices: Any) -> None:
    """Write the float32 bundle BUNDLE with weights of few bits as OUT.

    int4 is calibrated: the model reads text of several kinds, a layer at a time, and matrices that lose most get 8
    bits. That takes minutes; after Ctrl-C the same command goes on where it was. --method mse takes seconds.
    Where torch is installed, scales are then tuned, which takes longer: --no-tune leaves them.

    --keep takes names separated by commas: embed_tokens, lm_head, draft_head, projection, qkv_proj, o_proj,
    gate_proj, up_proj, down_proj.
    """
    from recycle_onnx.export import quantize_bundle
    from recycle_onnx.export.fidelity import warning

    chosen = QuantizeChoices(**choices)
    how = chosen.quantization()
    options = chosen.options(how)
    with stages() as report:
        manifest, fidelity = quantize_bundle(bundle, out, how, options, force=force, report=report)
    if warned := warning(manifest.precision, fidelity, (manifest.quantization or {})["method"]):
        click.echo(f"Warning: {warned}", err=True)
    if json_:
        size = sum(file.bytes for file in manifest.files.values())
        click.echo(as_json({"bundle": str(out), "bytes": size, "quantization": manifest.quantization}))
    else:
        _say(out, manifest, how.block_size, as_table=table)


def _say(out: Path, manifest: Manifest, block_size: int, *, as_table: bool) -> None:
    size = sum(file.bytes for file in manifest.files.values())
    quantization = manifest.quantization or {}
    echo(f"{out}: {size / 1e6:.1f} MB, {manifest.precision} in blocks of {block_size}")
    if made := method_line(quantization):
        echo(made)
    if as_table and "perplexity" in quantization["fidelity"]:
        Console().print(fidelity_table(manifest.precision, quantization["fidelity"]))
    else:
        echo(fidelity_line(manifest.precision, quantization))

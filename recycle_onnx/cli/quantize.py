"""`recycle-onnx quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.cli.report import as_json, echo, stages

if TYPE_CHECKING:
    from recycle_onnx.export.fidelity import Fidelity, Rounding


@click.command()
@click.argument("bundle", type=Path)
@click.argument("out", type=Path)
@click.option("--bits", type=int, default=4, show_default=True, help="Bits of a weight: 4 or 8.")
@click.option("--block-size", type=int, help="Weights that share a scale.  [default: 32 for 4 bits, 64 for 8]")
@click.option(
    "--symmetric/--asymmetric", default=False, show_default=True, help="Blocks without a zero point, or with."
)
@click.option("--method", default="", help="mse or rtn.  [default: mse for 4 bits, rtn for 8]")
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
@click.option("--text", type=Path, help="Text to measure the cost on.  [default: the model's own, sampled]")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Load BUNDLE too, measure the cost.")
@click.option("--report", "table", is_flag=True, help="Print what it costs as a table.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def quantize(
    bundle: Path,
    out: Path,
    bits: int,
    block_size: int | None,
    symmetric: bool,
    method: str,
    keep: str | None,
    activations: str,
    text: Path | None,
    compare: bool,
    table: bool,
    force: bool,
    json_: bool,
) -> None:
    """Write the float32 bundle BUNDLE with weights of few bits as OUT.

    --keep takes names separated by commas: embed_tokens, lm_head, draft_head, projection, qkv_proj, o_proj,
    gate_proj, up_proj, down_proj.
    """
    from recycle_onnx.export import Quantization, quantize_bundle
    from recycle_onnx.export.fidelity import Fidelity

    parts = None if keep is None else tuple(part.strip() for part in keep.split(",") if part.strip())
    how = Quantization(bits, block_size or 0, symmetric, method, parts, activations)
    with stages() as report:
        manifest, fidelity = quantize_bundle(bundle, out, how, text=text, compare=compare, force=force, report=report)
    size = sum(file.bytes for file in manifest.files.values())
    if json_:
        click.echo(as_json({"bundle": str(out), "bytes": size, "quantization": manifest.quantization}))
        return
    echo(f"{out}: {size / 1e6:.1f} MB, {manifest.precision} in blocks of {how.block_size}")
    if table and isinstance(fidelity, Fidelity):
        Console().print(_table(manifest.precision, fidelity))
    else:
        echo(fidelity_line(manifest.precision, fidelity))


def fidelity_line(precision: str, fidelity: Rounding) -> str:
    """What a quantization costs, in one line, or how to know."""
    from recycle_onnx.export.fidelity import Fidelity

    within = "verify is exact here" if fidelity.equal_runs else f"verify is within {fidelity.epsilon:.2g} of full"
    if not isinstance(fidelity, Fidelity):
        return f"{precision}: {within}; what quality it costs was not measured: --compare does, and loads float32"
    change = fidelity.perplexity / fidelity.perplexity_fp32 - 1
    accepted = ""
    if fidelity.acceptance is not None and fidelity.acceptance_fp32 is not None:
        accepted = f", acceptance {fidelity.acceptance_fp32:.1%} to {fidelity.acceptance:.1%}"
    return (
        f"{precision}: perplexity {fidelity.perplexity_fp32:.3f} to {fidelity.perplexity:.3f} ({change:+.2%}), "
        f"same best token {fidelity.top1_agreement:.1%}{accepted}; {within}"
    )


def _table(precision: str, fidelity: Fidelity) -> Table:
    table = Table("", "fp32", precision, title=f"{fidelity.tokens} tokens: {fidelity.text}", title_justify="left")
    table.add_row("perplexity", f"{fidelity.perplexity_fp32:.4f}", f"{fidelity.perplexity:.4f}")
    table.add_row("same best token", "", f"{fidelity.top1_agreement:.2%}")
    if fidelity.acceptance is not None and fidelity.acceptance_fp32 is not None:
        table.add_row("acceptance", f"{fidelity.acceptance_fp32:.2%}", f"{fidelity.acceptance:.2%}")
    within = "exact here" if fidelity.equal_runs else f"within {fidelity.epsilon:.3g} logits"
    table.add_row("verify against full", "exact", within)
    return table

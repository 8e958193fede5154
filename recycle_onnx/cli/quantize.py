"""`recycle-onnx quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from recycle_onnx.cli.fidelity import fidelity_line, fidelity_table, method_line
from recycle_onnx.cli.report import as_json, echo, stages
from recycle_onnx.cli.tuning import tune_option, tuner_of

if TYPE_CHECKING:
    from recycle_onnx.export import Calibration
    from recycle_onnx.tuning import Tuner


@click.command()
@click.argument("bundle", type=Path)
@click.argument("out", type=Path)
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
@click.option(
    "--bits-per-weight",
    type=float,
    help="Calibrated: budget for the layers' matrices, scales included.  [default: 5.5]",
)
@click.option(
    "--calibration",
    "calibration_text",
    type=Path,
    metavar="FILE",
    help="Calibrated: text, or JSON lines with text or prompts.  [default: a mixture, and what the model writes]",
)
@tune_option
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
@click.option("--text", type=Path, help="Text to measure the cost on.  [default: a page of plain English]")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Load BUNDLE too, measure the cost.")
@click.option("--report", "table", is_flag=True, help="Print what it costs as a table.")
@click.option("--threads", type=int, help="Threads of ONNX Runtime.  [default: one a physical core]")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--force-quality", is_flag=True, help="Write OUT even if perplexity rises by more than 25 %.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def quantize(
    bundle: Path,
    out: Path,
    bits: int,
    block_size: int | None,
    symmetric: bool,
    method: str,
    bits_per_weight: float | None,
    calibration_text: Path | None,
    tune: bool,
    keep: str | None,
    activations: str,
    text: Path | None,
    compare: bool,
    table: bool,
    threads: int | None,
    force: bool,
    force_quality: bool,
    json_: bool,
) -> None:
    """Write the float32 bundle BUNDLE with weights of few bits as OUT.

    int4 is calibrated: the model reads text of several kinds, a layer at a time, and matrices that lose most get 8
    bits. That takes minutes; after Ctrl-C the same command goes on where it was. --method mse takes seconds. With
    --tune the scales are then trained; codes and zero points stay.

    --keep takes names separated by commas: embed_tokens, lm_head, draft_head, projection, qkv_proj, o_proj,
    gate_proj, up_proj, down_proj.
    """
    from recycle_onnx.export import Quantization, quantize_bundle
    from recycle_onnx.export.block_quantizer import CALIBRATED
    from recycle_onnx.export.fidelity import warning

    parts = None if keep is None else tuple(part.strip() for part in keep.split(",") if part.strip())
    how = Quantization(bits, block_size or 0, symmetric, method or default_method(bits), parts, activations)
    tuner = tuner_of(tune, calibrated=how.method == CALIBRATED)
    calibration = calibration_of(calibration_text, bits_per_weight, tuner, by_default=not method)
    with stages() as report:
        manifest, fidelity = quantize_bundle(
            bundle, out, how, calibration=calibration, text=text, compare=compare, force=force,
            force_quality=force_quality, threads=threads, report=report,
        )  # fmt: skip
    size = sum(file.bytes for file in manifest.files.values())
    quantization = manifest.quantization or {}
    if warned := warning(manifest.precision, fidelity, quantization["method"]):
        click.echo(f"Warning: {warned}", err=True)
    if json_:
        click.echo(as_json({"bundle": str(out), "bytes": size, "quantization": quantization}))
        return
    echo(f"{out}: {size / 1e6:.1f} MB, {manifest.precision} in blocks of {how.block_size}")
    if made := method_line(quantization):
        echo(made)
    if table and "perplexity" in quantization["fidelity"]:
        Console().print(fidelity_table(manifest.precision, quantization["fidelity"]))
    else:
        echo(fidelity_line(manifest.precision, quantization))


def default_method(bits: int) -> str:
    """Return the method where none was asked for; empty where the number of bits decides."""
    from recycle_onnx.export.block_quantizer import CALIBRATED

    return CALIBRATED if bits == 4 else ""


def calibration_of(
    text: Path | None, bits_per_weight: float | None, tuner: Tuner | None, *, by_default: bool
) -> Calibration:
    """Return what to calibrate with; `by_default` only models for which that takes minutes."""
    from recycle_onnx.export import Calibration
    from recycle_onnx.export.calibrated.calibrate import BITS_PER_WEIGHT, LARGEST

    budget = BITS_PER_WEIGHT if bits_per_weight is None else bits_per_weight
    return Calibration(
        text, budget, LARGEST if by_default and text is None and bits_per_weight is None else None, tuner
    )

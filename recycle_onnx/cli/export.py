"""`recycle-onnx export`."""

from __future__ import annotations

from pathlib import Path

import click

from recycle_onnx.cli.fidelity import fidelity_line, method_line
from recycle_onnx.cli.quantize import calibration_of, default_method
from recycle_onnx.cli.report import as_json, echo, stages
from recycle_onnx.cli.sources import FromSource, note, source_options
from recycle_onnx.cli.tuning import tune_option, tuner_of
from recycle_onnx.cli.untrained import note_if_untrained
from recycle_onnx.errors import InputError


@click.command(cls=FromSource)
@click.argument("checkpoint")
@click.argument("bundle", type=Path)
@click.option(
    "--flavour",
    type=click.Choice(["ort", "standard"]),
    default="ort",
    show_default=True,
    help="Operators of the graphs: ONNX Runtime's own too, or those of ONNX only, for other runtimes and providers.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    default="fp32",
    show_default=True,
    help="Of the weights; `recycle-onnx quantize` has more options.",
)
@click.option(
    "--method", default="",
    help="Of int4: source, calibrated, mse or rtn; of int8: source.  [default: source, a GGUF file's own blocks, where "
    "most take no more bits; else calibrated, above 2.5 GB mse]",
)  # fmt: skip
@click.option(
    "--bits-per-weight", type=float, help="Of calibrated int4: budget for the layers' matrices.  [default: 5.5]"
)
@click.option(
    "--calibration", "calibration_text", type=Path, metavar="FILE",
    help="Of calibrated int4: text, or JSON lines with text or prompts.  [default: a mixture, and the model's own]",
)  # fmt: skip
@tune_option
@click.option(
    "--activations",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of int8 and int4: what is not quantized, hidden states and caches. fp16 is for GPUs.",
)
@click.option(
    "--draft-vocab",
    type=int,
    help="Let the module propose so many frequent tokens only; needs --draft-text.  [default: the checkpoint's]",
)
@click.option("--draft-text", type=Path, help="Text like that which the model will write, to count tokens in.")
@click.option("--text", type=Path, help="Text to measure the cost of quantization on.  [default: plain English]")
@click.option(
    "--compare/--no-compare",
    default=None,
    help="Measure the cost of quantization against float32, which has to be made and loaded for it.  [default: with "
    "--text, where that is no more than 1 GB, and where int4 is calibrated]",
)
@click.option("--threads", type=int, help="Threads of ONNX Runtime.  [default: one a physical core]")
@source_options
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists.")
@click.option("--force-quality", is_flag=True, help="Write BUNDLE even if perplexity rises by more than 25 %.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def export(
    checkpoint: str,
    bundle: Path,
    flavour: str,
    precision: str,
    method: str,
    bits_per_weight: float | None,
    calibration_text: Path | None,
    tune: bool,
    activations: str,
    draft_vocab: int | None,
    draft_text: Path | None,
    text: Path | None,
    compare: bool | None,
    threads: int | None,
    revision: str | None,
    force: bool,
    force_quality: bool,
    json_: bool,
) -> None:
    """Write CHECKPOINT, a base with or without a module, as the ONNX bundle BUNDLE.

    CHECKPOINT is a folder; for a base without a module also a GGUF file or a model on the hub (org/name).
    """
    from dataclasses import asdict

    from recycle_onnx.checkpoint.sources import folder_of
    from recycle_onnx.export import DraftVocabulary, HalfPrecision, Quantization
    from recycle_onnx.export import export as run
    from recycle_onnx.export.block_quantizer import CALIBRATED
    from recycle_onnx.export.fidelity import warning

    quantization: Quantization | HalfPrecision | None = None
    if precision != "fp32":
        bits = int(precision.removeprefix("int").removeprefix("fp"))
        chosen = method or default_method(bits)
        quantization = HalfPrecision() if bits == 16 else Quantization(bits, method=chosen, activations=activations)
    if text is not None and quantization is None:
        raise InputError("--text is for measuring quantization; it goes with --precision fp16, int8 or int4")
    if activations == "fp16" and precision not in ("int8", "int4"):
        raise InputError(
            "--activations fp16 goes with --precision int8 or int4; --precision fp16 is float16 throughout"
        )
    if compare and quantization is None:
        raise InputError("--compare is about quantization; it goes with --precision fp16, int8 or int4")
    of_int4 = method and (method, precision) != ("source", "int8")
    if precision != "int4" and (of_int4 or bits_per_weight is not None or calibration_text):
        raise InputError("--method, --bits-per-weight and --calibration go with --precision int4")
    tuner = tuner_of(tune, calibrated=isinstance(quantization, Quantization) and quantization.method == CALIBRATED)
    calibration = calibration_of(calibration_text, bits_per_weight, tuner, by_default=not method)
    prefer_source = not method and bits_per_weight is None and calibration_text is None
    draft = DraftVocabulary.given(draft_vocab, draft_text)
    with (
        stages() as report,
        folder_of(
            checkpoint, bundle, revision=revision, force=force, note=note,
            progress=lambda exported, total, _: report("converting", exported, total),
        ) as folder,
    ):  # fmt: skip
        exported = run(
            folder,
            bundle,
            flavour=flavour,
            quantization=quantization,
            draft_vocabulary=draft,
            prefer_source=prefer_source,
            calibration=calibration,
            text=text,
            compare=compare,
            force=force,
            force_quality=force_quality,
            threads=threads,
            report=report,
        )
    check = exported.self_check
    size = sum(file.bytes for file in exported.manifest.files.values())
    if "recycler" in exported.manifest.graphs:
        note_if_untrained(exported.manifest.module_trained)
    quantized = exported.manifest.quantization or {}
    if exported.fidelity is not None:
        warned = warning(exported.manifest.precision, exported.fidelity, quantized.get("method", ""))
        if warned is not None:
            click.echo(f"Warning: {warned}", err=True)
    if json_:
        strategies = list(exported.manifest.strategies)
        described = {"bundle": str(bundle), "bytes": size, "strategies": strategies, "self_check": asdict(check)}
        click.echo(as_json({**described, "quantization": exported.manifest.quantization}))
        return
    echo(f"{bundle}: {size / 1e6:.1f} MB, strategies {', '.join(exported.manifest.strategies)}")
    apart = f"{check.prefill_against_steps:.1e} of the largest logit"
    echo(f"checked: a prompt read at once and one read token by token differ by {apart}")
    if "fp16" in (precision, activations):
        echo("fp16 is for GPUs: on a CPU ONNX Runtime computes it in float32, and no faster")
    if made := method_line(quantized):
        echo(made)
    if exported.fidelity is not None:
        echo(fidelity_line(exported.manifest.precision, quantized))
    if (difference := check.against_reference) is not None:
        echo(f"checked: torch and the graphs differ by {difference:.1e} of the largest logit")

"""`recycle-onnx export`."""

from __future__ import annotations

from pathlib import Path

import click

from recycle_onnx.cli.quantize import fidelity_line
from recycle_onnx.cli.report import as_json, echo, stages
from recycle_onnx.cli.sources import FromSource, note, source_options
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
@click.option("--text", type=Path, help="Text to measure the cost of quantization on.  [default: the model's own]")
@click.option(
    "--compare/--no-compare",
    default=None,
    help="Measure the cost of quantization against float32, which has to be made and loaded for it.  [default: with "
    "--text, and where that is no more than 1 GB]",
)
@source_options
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def export(
    checkpoint: str,
    bundle: Path,
    flavour: str,
    precision: str,
    activations: str,
    draft_vocab: int | None,
    draft_text: Path | None,
    text: Path | None,
    compare: bool | None,
    revision: str | None,
    force: bool,
    json_: bool,
) -> None:
    """Write CHECKPOINT, a base with or without a module, as the ONNX bundle BUNDLE.

    CHECKPOINT is a folder; for a base without a module also a GGUF file or a model on the hub (org/name).
    """
    from dataclasses import asdict

    from recycle_onnx.checkpoint.sources import folder_of
    from recycle_onnx.export import DraftVocabulary, HalfPrecision, Quantization
    from recycle_onnx.export import export as run

    quantization: Quantization | HalfPrecision | None = None
    if precision != "fp32":
        bits = int(precision.removeprefix("int").removeprefix("fp"))
        quantization = HalfPrecision() if bits == 16 else Quantization(bits=bits, activations=activations)
    if text is not None and quantization is None:
        raise InputError("--text is for measuring quantization; it goes with --precision fp16, int8 or int4")
    if activations == "fp16" and precision not in ("int8", "int4"):
        raise InputError(
            "--activations fp16 goes with --precision int8 or int4; --precision fp16 is float16 throughout"
        )
    if compare is not None and quantization is None:
        raise InputError("--compare is about quantization; it goes with --precision fp16, int8 or int4")
    draft = DraftVocabulary.given(draft_vocab, draft_text)
    with (
        stages() as report,
        folder_of(
            checkpoint, bundle, revision=revision, force=force, note=note,
            progress=lambda done, total, _: report("converting", done, total),
        ) as folder,
    ):  # fmt: skip
        done = run(
            folder,
            bundle,
            flavour=flavour,
            quantization=quantization,
            draft_vocabulary=draft,
            text=text,
            compare=compare,
            force=force,
            report=report,
        )
    size = sum(file.bytes for file in done.manifest.files.values())
    if "recycler" in done.manifest.graphs:
        note_if_untrained(done.manifest.module_trained)
    if json_:
        strategies = list(done.manifest.strategies)
        check = asdict(done.self_check)
        described = {"bundle": str(bundle), "bytes": size, "strategies": strategies, "self_check": check}
        click.echo(as_json({**described, "quantization": done.manifest.quantization}))
        return
    echo(f"{bundle}: {size / 1e6:.1f} MB, strategies {', '.join(done.manifest.strategies)}")
    echo(f"prefill against steps: largest difference {done.self_check.prefill_against_steps:.1e} of the largest logit")
    if "fp16" in (precision, activations):
        echo("fp16 is for GPUs: on a CPU ONNX Runtime computes it in float32, and no faster")
    if done.fidelity is not None:
        echo(fidelity_line(done.manifest.precision, done.fidelity))
    if (difference := done.self_check.against_reference) is not None:
        echo(f"torch against graphs: largest difference {difference:.1e} of the largest logit")

"""`recycle-onnx export`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recycle_onnx.cli.fidelity import fidelity_line, method_line
from recycle_onnx.cli.paths import PATH, SOURCE
from recycle_onnx.cli.quantization import KV, QuantizationChoices, calibrating
from recycle_onnx.cli.report import as_json, echo, stages
from recycle_onnx.cli.sources import FromSource, note, source_options
from recycle_onnx.cli.untrained import note_if_untrained
from recycle_onnx.errors import InputError

if TYPE_CHECKING:
    from recycle_onnx.export import ExportOptions, ExportReport
    from recycle_onnx.export.flavours import Precision


@dataclass(frozen=True, kw_only=True)
class ExportChoices(QuantizationChoices):
    """The options of `export`, by their names."""

    flavour: str
    precision: str
    draft_vocab: int | None
    draft_text: Path | None
    compare: bool | None
    requantize: bool
    module_window: int | None

    @property
    def for_gpus(self) -> bool:
        """Whether activations are float16."""
        return "fp16" in (self.precision, self.activations)

    def options(self) -> ExportOptions:
        """Return them as `export` takes them.

        Raises:
            InputError: options that do not go together.
        """
        from recycle_onnx.export import DraftVocabulary, ExportOptions

        how = self._precision()
        self._check()
        return ExportOptions(
            self.flavour,
            how,
            DraftVocabulary.given(self.draft_vocab, self.draft_text),
            prefer_source=self.as_usual and not self.requantize,
            calibration=self.calibration(how),
            text=self.text,
            compare=self.compare,
            force_quality=self.force_quality,
            threads=self.threads,
            module_window=self.module_window,
            kv=self.kv,
        )

    def _precision(self) -> Precision | None:
        """Return how weights are to be stored; None for float32."""
        from recycle_onnx.export import HalfPrecision, Quantization

        if self.precision in ("fp32", "fp16"):
            return HalfPrecision() if self.precision == "fp16" else None
        bits = int(self.precision.removeprefix("int"))
        return Quantization(bits, method=self.method_for(bits), activations=self.activations)

    def _check(self) -> None:
        if self.text is not None and self.precision == "fp32":
            raise InputError("--text is for measuring quantization; it goes with --precision fp16, int8 or int4")
        if self.activations == "fp16" and self.precision not in ("int8", "int4"):
            raise InputError(
                "--activations fp16 goes with --precision int8 or int4; --precision fp16 is float16 throughout"
            )
        if self.compare and self.precision == "fp32":
            raise InputError("--compare is about quantization; it goes with --precision fp16, int8 or int4")
        if self.requantize and (self.method == "source" or self.precision in ("fp32", "fp16")):
            raise InputError("--requantize rounds weights to int8 or int4; it goes with neither fp32, fp16 nor source")
        of_int4 = self.method and (self.method, self.precision) != ("source", "int8")
        if self.precision != "int4" and (of_int4 or self.bits_per_weight is not None or self.calibration_text):
            raise InputError("--method, --bits-per-weight and --calibration go with --precision int4")


@click.command(cls=FromSource)
@click.argument("checkpoint", type=SOURCE)
@click.argument("bundle", type=PATH)
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
    help="Of int4: source, calibrated, mse or rtn; of int8: source.  [default: source, the blocks of a GGUF file or of "
    "quantized weights, where most take no more bits; else calibrated, above 2.5 GB mse]",
)  # fmt: skip
@click.option("--requantize", is_flag=True, help="Round weights anew that are quantized already.")
@calibrating
@click.option(
    "--activations",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of int8 and int4: what is not quantized, hidden states and caches. fp16 is for GPUs.",
)
@KV
@click.option(
    "--draft-vocab",
    type=int,
    help="Let the module propose so many frequent tokens only; needs --draft-text.  [default: the checkpoint's]",
)
@click.option("--draft-text", type=PATH, help="Text like that which the model will write, to count tokens in.")
@click.option(
    "--module-window", type=int, help="Let the module see the latest so many rows only.  [default: the checkpoint's]"
)
@click.option("--text", type=PATH, help="Text to measure the cost of quantization on.  [default: plain English]")
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
    checkpoint: str, bundle: Path, revision: str | None, adapter: Path | None, force: bool, json_: bool, **choices: Any
) -> None:
    """Write CHECKPOINT, a base with or without a module, as the ONNX bundle BUNDLE.

    CHECKPOINT is a folder; for a base without a module also a GGUF file or a model on the hub (org/name).
    """
    from recycle_onnx.checkpoint.sources import NamedBase, folder_of
    from recycle_onnx.export import export as run

    chosen = ExportChoices(**choices)
    options = chosen.options()
    with (
        stages() as report,
        folder_of(
            NamedBase(checkpoint, revision, adapter), bundle, force=force, note=note,
            progress=lambda exported, total, _: report(exported, total, "converting"),
        ) as folder,
    ):  # fmt: skip
        exported = run(folder, bundle, options, force=force, report=report)
    _warn(exported)
    if json_:
        click.echo(as_json(_to_json(exported)))
    else:
        _say(exported, for_gpus=chosen.for_gpus)


def _warn(exported: ExportReport) -> None:
    """Say what is wrong with a bundle that was written all the same: its module, or its quality."""
    from recycle_onnx.export.fidelity import warning

    manifest = exported.manifest
    if "recycler" in manifest.graphs:
        note_if_untrained(manifest.module_trained)
    method = (manifest.quantization or {}).get("method", "")
    if exported.fidelity and (warned := warning(manifest.precision, exported.fidelity, method)):
        click.echo(f"Warning: {warned}", err=True)


def _to_json(exported: ExportReport) -> dict[str, Any]:
    return {
        "bundle": str(exported.bundle),
        "bytes": exported.bytes,
        "strategies": list(exported.manifest.strategies),
        "self_check": exported.self_check and asdict(exported.self_check),
        "quantization": exported.manifest.quantization,
    }


def _say(exported: ExportReport, *, for_gpus: bool) -> None:
    manifest, check = exported.manifest, exported.self_check
    quantized = manifest.quantization or {}
    echo(f"{exported.bundle}: {exported.bytes / 1e6:.1f} MB, strategies {', '.join(manifest.strategies)}")
    if check is not None:
        apart = f"{check.prefill_against_steps:.1e} of the largest logit"
        echo(f"checked: a prompt read at once and one read token by token differ by {apart}")
    if for_gpus:
        echo("fp16 is for GPUs: on a CPU ONNX Runtime computes it in float32, and no faster")
    if made := method_line(quantized):
        echo(made)
    if exported.fidelity is not None:
        echo(fidelity_line(manifest.precision, quantized))
    if check is not None and (difference := check.against_reference) is not None:
        echo(f"checked: torch and the graphs differ by {difference:.1e} of the largest logit")

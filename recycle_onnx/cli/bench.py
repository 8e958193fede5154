"""`recycle-onnx bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recycle_onnx.cli.bench_answers import report_answers
from recycle_onnx.cli.options import chosen, places, placing
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, progress, stages
from recycle_onnx.errors import InputError
from recycle_onnx.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from recycle_onnx.bench.answers import AnswerOptions
    from recycle_onnx.bench.run import Options

RANDOM = "random weights: speeds of steps, `full` and `alternate` carry over to real ones, acceptance does not"
"""Stands beside every figure of random weights, so that nobody takes them for a model's."""


@click.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--shape", help="Instead of BUNDLE: random weights in the shape of tinyllama-1.1b, smollm2-135m, …")
@click.option("--precision", default="int4", show_default=True, help="Of the shape: fp32, fp16, int8 or int4.")
@click.option("--activations", default="fp32", show_default=True, help="Of the shape in int8 or int4: fp32 or fp16.")
@click.option("--flavour", default="ort", show_default=True, help="Of the shape's graphs: ort or standard.")
@click.option("--block-size", type=int, help="Of the shape's quantization.  [default: 32 for 4 bits, 64 for 8]")
@click.option("--module-layers", default=2, show_default=True, help="Of the shape's module.")
@click.option("--draft-vocab", type=int, help="Of the shape's module: so many tokens.  [default: all]")
@click.option("--forced-acceptance", type=float, help="Make the module's proposals right this often, at its cost.")
@click.option(
    "--prompts", type=PATH, help="Instead of texts of its own: answers to these, text or .jsonl, a prompt a line."
)
@click.option("--field", help="Where each line of JSON has its prompt.  [default: messages, turns or prompt]")
@click.option("--limit", default=20, show_default=True, help="Most prompts.")
@click.option("--temperature", default=0.0, show_default=True, help="Of answers to prompts; 0 is greedy.")
@click.option("--strategies", default="", help="Separated by commas.  [default: all that the bundle has]")
@click.option("--chain", default=1, show_default=True, help="Tokens that verify proposes a cycle.")
@click.option("--context", default="128", show_default=True, help="Tokens before the new ones; several with commas.")
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--threads", default="", help="Separated by commas.  [default: one a physical core]")
@placing
@click.option("--repeat", type=int, help="Interleaved runs of each combination.  [default: 10, of each prompt 1]")
@click.option("--plot", type=PATH, help="Also write a picture, for instance bench.png; needs matplotlib.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def bench(bundle: Path | None, plot: Path | None, json_: bool, **settings: Any) -> None:
    """Measure BUNDLE, or random weights of a known shape, on this machine.

    Strategies take turns; figures are medians with 95 % intervals. They go on from text that the model wrote itself,
    and a chat model answers a question behind it. With --prompts every strategy answers each of them through the
    bundle's chat template, and the answers are compared with those of full.
    """
    random, asked = chosen(ShapeChoices, settings), chosen(BenchChoices, settings)
    if (bundle is None) == (random.shape is None):
        raise InputError("expected a BUNDLE, or --shape for random weights; not both")
    if asked.prompts:
        if bundle is None or asked.forced_acceptance is not None or plot:
            raise InputError("--prompts needs a BUNDLE, and no --shape, --forced-acceptance or --plot with it")
        report_answers(bundle, _prompts(asked.prompts, asked.field, asked.limit), asked.of_answers(settings), json_)
        return
    _measure(bundle, random, asked.of_texts(settings), plot, json_)


@dataclass(frozen=True)
class ShapeChoices:
    """The options about random weights, by their names."""

    shape: str | None
    precision: str
    activations: str
    flavour: str
    block_size: int | None
    module_layers: int
    draft_vocab: int | None

    def bundle(self) -> Path:
        """Make the bundle, or find it in the user's cache."""
        from recycle_onnx.bench.bundles import random_bundle

        with stages() as report:
            return random_bundle(
                str(self.shape), self.precision, self.module_layers, self.block_size or 0, self.draft_vocab,
                self.flavour, self.activations, report,
            )  # fmt: skip


@dataclass(frozen=True)
class BenchChoices:
    """The options that say what to measure, by their names."""

    forced_acceptance: float | None
    prompts: Path | None
    field: str | None
    limit: int
    temperature: float
    strategies: str
    chain: int
    context: str
    new_tokens: int
    threads: str
    repeat: int | None

    def of_texts(self, settings: dict[str, Any]) -> Options:
        """Return what to measure on texts of the model's own; `settings` say where."""
        from recycle_onnx.bench.run import Options

        return Options(
            contexts=_numbers("context", self.context),
            repeat=10 if self.repeat is None else self.repeat,
            forced_acceptance=self.forced_acceptance,
            **self._of_both(settings),
        )

    def of_answers(self, settings: dict[str, Any]) -> AnswerOptions:
        """Return what to measure on answers to prompts; `settings` say where."""
        from recycle_onnx.bench.answers import AnswerOptions

        repeat = 1 if self.repeat is None else self.repeat
        return AnswerOptions(repeat=repeat, temperature=self.temperature, **self._of_both(settings))

    def _of_both(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {
            "strategies": _names(self.strategies),
            "new_tokens": self.new_tokens,
            "threads": _numbers("threads", self.threads) or (None,),
            "chain": self.chain,
            "placing": places(settings),
        }


def _measure(bundle: Path | None, random: ShapeChoices, options: Options, plot: Path | None, json_: bool) -> None:
    from recycle_onnx.bench.conditions import Conditions
    from recycle_onnx.bench.plot import write_plot
    from recycle_onnx.bench.run import bench as run
    from recycle_onnx.bench.run import to_json
    from recycle_onnx.cli.bench_view import show
    from recycle_onnx.picture import check_plot

    if plot:
        check_plot(plot)
    measured = random.bundle() if bundle is None else bundle
    with progress("measuring") as update:
        results = run(measured, options, update)
    conditions = Conditions.here()
    if plot:
        write_plot(results, plot, f"{random.shape}, random weights" if bundle is None else str(bundle))
    if json_:
        label = {"label": f"{random.shape}, {RANDOM}"} if bundle is None else {}
        click.echo(as_json({**to_json(results, conditions), **label}))
    else:
        show(results, conditions, None if bundle else f"{random.shape}: {RANDOM}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _prompts(path: Path, field: str | None, limit: int) -> list[Prompt]:
    if limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1")
    return read_prompts(path, field)[:limit]


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"--{name} is {text!r}; expected whole numbers separated by commas") from error

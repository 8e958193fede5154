"""`recycle-onnx bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from recycle_onnx.cli.bench_answers import report_answers
from recycle_onnx.cli.options import places, placing
from recycle_onnx.cli.report import as_json, progress, stages
from recycle_onnx.cli.steps import step_times
from recycle_onnx.errors import InputError
from recycle_onnx.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from recycle_onnx.bench.run import Measurement

RANDOM = "random weights: speeds of steps, `full` and `alternate` carry over to real ones, acceptance does not"


@click.command()
@click.argument("bundle", type=Path, required=False)
@click.option("--shape", help="Instead of BUNDLE: random weights in the shape of tinyllama-1.1b, smollm2-135m, …")
@click.option("--precision", default="int4", show_default=True, help="Of the shape: fp32, fp16, int8 or int4.")
@click.option("--activations", default="fp32", show_default=True, help="Of the shape in int8 or int4: fp32 or fp16.")
@click.option("--flavour", default="ort", show_default=True, help="Of the shape's graphs: ort or standard.")
@click.option("--block-size", type=int, help="Of the shape's quantization.  [default: 32 for 4 bits, 64 for 8]")
@click.option("--module-layers", default=2, show_default=True, help="Of the shape's module.")
@click.option("--draft-vocab", type=int, help="Of the shape's module: so many tokens.  [default: all]")
@click.option("--forced-acceptance", type=float, help="Make the module's proposals right this often, at its cost.")
@click.option("--prompts", type=Path, help="Instead of random text: answers to these, text or .jsonl, a prompt a line.")
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
@click.option("--plot", type=Path, help="Also write a picture, for instance bench.png; needs matplotlib.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def bench(
    bundle: Path | None,
    shape: str | None,
    precision: str,
    activations: str,
    flavour: str,
    block_size: int | None,
    module_layers: int,
    draft_vocab: int | None,
    forced_acceptance: float | None,
    prompts: Path | None,
    field: str | None,
    limit: int,
    temperature: float,
    strategies: str,
    chain: int,
    context: str,
    new_tokens: int,
    threads: str,
    repeat: int | None,
    plot: Path | None,
    json_: bool,
    **settings: Any,
) -> None:
    """Measure BUNDLE, or random weights of a known shape, on this machine.

    Strategies take turns; figures are medians with 95 % intervals. With --prompts every strategy answers each of them
    through the bundle's chat template, and the answers are compared with those of full.
    """
    from recycle_onnx.bench.conditions import Conditions
    from recycle_onnx.bench.run import Options, to_json, verdict
    from recycle_onnx.bench.run import bench as run

    if (bundle is None) == (shape is None):
        raise InputError("expected a BUNDLE, or --shape for random weights; not both")
    if prompts:
        if bundle is None or forced_acceptance is not None or plot:
            raise InputError("--prompts needs a BUNDLE, and no --shape, --forced-acceptance or --plot with it")
        report_answers(
            bundle,
            _prompts(prompts, field, limit),
            json_,
            strategies=_names(strategies),
            new_tokens=new_tokens,
            threads=_numbers("threads", threads) or (None,),
            repeat=1 if repeat is None else repeat,
            chain=chain,
            temperature=temperature,
            placing=places(settings),
        )
        return
    if plot:
        from recycle_onnx.bench.plot import write_plot
        from recycle_onnx.picture import check_plot

        check_plot(plot)
    options = Options(
        strategies=_names(strategies),
        contexts=_numbers("context", context),
        new_tokens=new_tokens,
        threads=_numbers("threads", threads) or (None,),
        repeat=10 if repeat is None else repeat,
        chain=chain,
        forced_acceptance=forced_acceptance,
        placing=places(settings),
    )
    if bundle is None:
        from recycle_onnx.bench.bundles import random_bundle

        with stages() as report:
            bundle = random_bundle(
                str(shape), precision, module_layers, block_size or 0, draft_vocab, flavour, activations, report
            )
    with progress("measuring") as update:
        results = run(bundle, options, update)
    conditions = Conditions.here()
    if plot:
        write_plot(results, plot, f"{shape}, random weights" if shape else str(bundle))
    if json_:
        label = {"label": f"{shape}, {RANDOM}"} if shape else {}
        click.echo(as_json({**to_json(results, conditions), **label}))
        return
    console = Console()
    console.print(f"{conditions.cpu}, {conditions.threads} processors, ONNX Runtime {conditions.onnxruntime}, "
                  f"reads {conditions.read_bandwidth_gb_s:.0f} GB/s", highlight=False)  # fmt: skip
    if shape:
        console.print(f"{shape}: {RANDOM}", highlight=False, soft_wrap=True)
    for title, group in _settings(results):
        console.print(_table(title, group))
        console.print(_steps(group[0]), highlight=False, soft_wrap=True)
    console.print(verdict(results), highlight=False, soft_wrap=True)


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


def _settings(results: Sequence[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    """Yield the measurements of each context and number of threads, with a heading."""
    for (threads, context), group in groupby(results, key=lambda r: (r.threads, r.context)):
        yield f"threads {threads or 'default'}, context {context}", list(group)


def _table(title: str, results: Sequence[Measurement]) -> Table:
    columns = ("strategy", "tokens/s", "x full", "predicted", "tokens/run", "accepted")
    table = Table(*columns, title=f"{title} (medians, 95 % intervals)", title_justify="left")
    for r in results:
        table.add_row(
            r.strategy + (f" ({r.label})" if r.label else ""),
            f"{r.decode_tokens_per_second:.1f} ({r.interval[0]:.1f} to {r.interval[1]:.1f})",
            f"{r.measured_speedup:.2f} ({r.speedup_interval[0]:.2f} to {r.speedup_interval[1]:.2f})",
            "" if r.predicted_speedup is None else f"{r.predicted_speedup:.2f}",
            f"{r.tokens_per_full_run:.2f}",
            "" if r.acceptance_rate is None else f"{r.acceptance_rate:.0%}",
        )
    return table


def _steps(full: Measurement) -> str:
    """Say what steps cost, and how much of the memory's speed a full step uses."""
    return (
        f"steps in ms: {step_times(full.step_ms)}; weights read at {full.weights_gb_per_s:.1f} GB/s\n"
        f"prompt {full.prefill_tokens_per_second:.0f} tokens/s, first token after "
        f"{1e3 * full.time_to_first_token_s:.1f} ms, loaded in {full.load_s:.2f} s"
    )

"""`recycle-onnx generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from recycle_onnx.cli import options
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json
from recycle_onnx.cli.steps import proposal, step_times, tokens
from recycle_onnx.errors import InputError
from recycle_onnx.untrusted import printable

if TYPE_CHECKING:
    from recycle_onnx.runtime.generation import Generation, Result

RECYCLED = "bold green"
LOSSLESS = {
    "exact": "the text is exactly the full model's",
    "within_rounding": "the text is the full model's within rounding",
    "no": "the text may differ from the full model's",
}


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("prompt")
@options.controls
@options.logprobs("Shown with --json.")
@options.loading
@click.option("--chat", is_flag=True, help="Answer PROMPT, a message, by the model's chat template.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object instead of streaming.")
def generate(bundle: Path, prompt: str, chat: bool, json_: bool, **settings: Any) -> None:
    """Continue PROMPT with the model in BUNDLE; a PROMPT of - is read from standard input.

    What is not given is as the bundle's generation_config.json says, and greedy where it says nothing. On a terminal
    recycled tokens are green. The summary goes to standard error.
    """
    text = read_prompt(prompt)
    model = options.load(bundle, settings)
    config = options.config(model, settings)
    generation = model.conversation().send(text, config) if chat else model.stream(text, config)
    options.note_module(model, config)
    if json_:
        click.echo(as_json(generation.finish().to_json()))
        return
    show("" if chat else text, generation)


def read_prompt(prompt: str) -> str:
    """Return the prompt, which is read from standard input where it is `-`.

    Raises:
        InputError: it is empty, or no UTF-8 text.
    """
    text = _read_standard_input() if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty; expected some text to continue")
    return text


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error})") from error


def show(prompt: str, generation: Generation) -> None:
    """Print tokens as they come behind the prompt, and the summary on standard error.

    Raises:
        KeyboardInterrupt: it says how far the text had come.
    """
    try:
        _stream(prompt, generation)
    except KeyboardInterrupt as interruption:
        click.echo()
        raise KeyboardInterrupt(f"interrupted after {len(generation.tokens)} tokens") from interruption
    for line in summary(generation.result):
        click.echo(line, err=True)


def _stream(prompt: str, generation: Generation) -> None:
    """Print tokens as they come. A token's colour is that of the token which completed its text."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        click.echo(prompt, nl=False)
        for token in generation:
            click.echo(token.text, nl=False)
        click.echo()
        return
    console.print(Text(prompt, style="dim"), end="")
    for token in generation:
        console.print(Text(printable(token.text), style=RECYCLED if token.recycled else ""), end="")
    console.print()


def summary(result: Result) -> list[str]:
    """Say in three lines (under `auto` four) what was generated, how fast, and whether it is the full model's text."""
    stats = result.stats
    accepted = "" if stats.acceptance_rate is None else f", {stats.acceptance_rate:.0%} of the proposals accepted"
    fewer = f" ({stats.runs_on_fewer_threads} on fewer threads)" if stats.runs_on_fewer_threads else ""
    lines = [
        f"{result.strategy}: {tokens(stats.new_tokens)} from {stats.full_runs} runs of the full model{fewer} and "
        f"{stats.recycle_runs} of the module{accepted} (finish reason: {result.finish_reason})",
        f"{stats.tokens_per_second:.1f} tokens/s, first token after {1000 * stats.time_to_first_token_s:.1f} ms",
        f"{sum(result.recycled)} recycled tokens; {LOSSLESS[result.lossless]} (lossless: {result.lossless})",
    ]
    return lines if result.decisions is None else [*lines, explanation(result.decisions)]


def explanation(decisions: dict[str, Any]) -> str:
    """Say in one line what `auto` chose, and why."""
    chosen = ", ".join(f"{proposal(name)} {count} times" for name, count in decisions["chosen"].items())
    costs = step_times(decisions["step_ms"])
    rates = ", ".join(f"{proposer} {places[0]:.0%}" for proposer, places in decisions["acceptance"].items())
    return f"auto chose {chosen or 'nothing yet'}; steps in ms: {costs or 'none measured'}; accepted: {rates or 'none'}"

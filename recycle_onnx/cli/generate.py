"""`recycle-onnx generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from recycle_onnx.cli.report import as_json
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, read_text

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import Overrides
    from recycle_onnx.runtime.generation import Generation, Result
    from recycle_onnx.runtime.structured import Constraint

DEFAULT_NEW_TOKENS = 128
RECYCLED = "bold green"
LOSSLESS = {
    "exact": "the text is exactly the full model's",
    "within_rounding": "the text is the full model's within rounding",
    "no": "the text may differ from the full model's",
}


@click.command()
@click.argument("bundle", type=Path)
@click.argument("prompt")
@click.option("--strategy", help="auto, full, alternate, verify or lookup.  [default: the bundle's, which is auto]")
@click.option("--chain", type=int, help="Most tokens to propose a cycle.  [default: 1 for verify, otherwise 4]")
@click.option("--min-confidence", type=float, help="Propose no token less likely to the module.  [default: 0]")
@click.option("--max-new-tokens", "-n", type=int, help="[default: the bundle's, otherwise 128]")
@click.option("--min-new-tokens", type=int, help="No token that ends the text comes before so many.")
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--top-k", type=int, help="Sample among so many tokens; 0 for all.")
@click.option("--top-p", type=float, help="Sample within this probability; 1 for all.")
@click.option("--min-p", type=float, help="Sample among tokens so likely, relative to the likeliest; 0 for all.")
@click.option("--repetition-penalty", type=float, help="Divides the logits of tokens in prompt and text; 1 for none.")
@click.option("--presence-penalty", type=float, help="Taken off the logits of tokens in the text; 0 for none.")
@click.option("--frequency-penalty", type=float, help="The same for every time they came; 0 for none.")
@click.option("--no-repeat-ngram-size", type=int, help="No so many tokens stand together twice; 0 for no limit.")
@click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Added to a token's logit; may be repeated.")
@click.option("--seed", type=int, help="The same seed gives the same text.  [default: 0]")
@click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated.")
@click.option("--stop-ids", multiple=True, type=int, metavar="ID", help="Token that ends it, not the bundle's; repeat.")
@click.option("--json-schema", type=Path, metavar="FILE", help="The text is JSON that this schema describes.")
@click.option("--regex", metavar="PATTERN", help="The text is one that this matches from beginning to end.")
@click.option("--grammar", type=Path, metavar="FILE", help="The text is one of this grammar, in Lark or GBNF.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities, and of so many likeliest tokens.")
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@click.option("--provider", default="cpu", show_default=True)
@click.option("--verify-files", is_flag=True, help="Hash the weights again before loading them.")
@click.option("--prepacked", is_flag=True, help="Keep weights in the user's cache as this processor wants them.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object instead of streaming.")
def generate(
    bundle: Path,
    prompt: str,
    threads: int | None,
    provider: str,
    verify_files: bool,
    prepacked: bool,
    json_: bool,
    **settings: Any,
) -> None:
    """Continue PROMPT with the model in BUNDLE; a PROMPT of - is read from standard input.

    What is not given is as the bundle's generation_config.json says, and greedy where it says nothing. On a terminal
    recycled tokens are green. The summary goes to standard error.
    """
    import recycle_onnx

    text = _read_standard_input() if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty; expected some text to continue")
    model = recycle_onnx.load(bundle, provider=provider, threads=threads, verify=verify_files, prepacked=prepacked)
    if model.generation_config.max_new_tokens is None and settings["max_new_tokens"] is None:
        settings["max_new_tokens"] = DEFAULT_NEW_TOKENS
    generation = model.stream(text, **_overrides(settings))
    if json_:
        for _ in generation:
            pass
        click.echo(as_json(generation.result.to_json()))
        return
    try:
        _show(text, generation)
    except KeyboardInterrupt as interruption:
        click.echo()
        raise KeyboardInterrupt(f"interrupted after {len(generation.tokens)} tokens") from interruption
    for line in summary(generation.result):
        click.echo(line, err=True)


def _overrides(settings: dict[str, Any]) -> Overrides:
    """What was given on the command line."""
    given: Any = {name: value for name, value in settings.items() if value is not None and value != ()}
    if "logit_bias" in given:
        given["logit_bias"] = dict(map(_bias, given["logit_bias"]))
    if constraint := _constraint(given):
        given["constraint"] = constraint
    overrides: Overrides = given
    return overrides


def _constraint(given: dict[str, Any]) -> Constraint | None:
    """Take the one that was given out of the settings."""
    from recycle_onnx.runtime.structured import Grammar, JsonSchema, Regex

    found = {name: given.pop(name) for name in ("json_schema", "regex", "grammar") if name in given}
    if len(found) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in found)
        raise InputError(f"{options} were given; expected one of them, as a text follows one constraint")
    if "json_schema" in found:
        return JsonSchema(read_json(found["json_schema"]))
    if "grammar" in found:
        return Grammar(read_text(found["grammar"]))
    return Regex(found["regex"]) if found else None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise InputError(f"logit-bias is {text!r}; expected a token id and a number, as in 42=-1.5") from error


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error})") from error


def _show(prompt: str, generation: Generation) -> None:
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
        console.print(Text(token.text, style=RECYCLED if token.recycled else ""), end="")
    console.print()


def summary(result: Result) -> list[str]:
    """Three lines (under `auto` four) on what was made, how fast, and how it relates to the full model's text."""
    stats = result.stats
    accepted = "" if stats.acceptance_rate is None else f", {stats.acceptance_rate:.0%} of the proposals accepted"
    lines = [
        f"{result.strategy}: {stats.new_tokens} tokens in {stats.full_runs} full and {stats.recycle_runs} recycle runs"
        f"{accepted} ({result.finish_reason})",
        f"{stats.tokens_per_second:.1f} tokens/s, first token after {1000 * stats.time_to_first_token_s:.1f} ms",
        f"{sum(result.recycled)} recycled tokens; {LOSSLESS[result.lossless]} (lossless: {result.lossless})",
    ]
    return lines if result.decisions is None else [*lines, explanation(result.decisions)]


def explanation(decisions: dict[str, Any]) -> str:
    """One line on what `auto` chose, and why."""
    chosen = ", ".join(f"{name.replace('_', ' x')} {count} times" for name, count in decisions["chosen"].items())
    costs = ", ".join(f"{name.replace('_', ' x')} {value:.2f}" for name, value in decisions["step_ms"].items())
    rates = ", ".join(f"{source} {places[0]:.0%}" for source, places in decisions["acceptance"].items())
    return f"auto chose {chosen or 'nothing yet'}; steps in ms: {costs or 'none measured'}; accepted: {rates or 'none'}"

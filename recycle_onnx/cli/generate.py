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

if TYPE_CHECKING:
    from recycle_onnx.runtime.generation import Generation, Result

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
@click.option(
    "--min-confidence", type=float, default=0.0, show_default=True, help="Propose no token less likely to the module."
)
@click.option("--max-new-tokens", "-n", type=int, default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Sample among so many tokens; 0 for all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Sample within this probability.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated.")
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@click.option("--provider", default="cpu", show_default=True)
@click.option("--verify-files", is_flag=True, help="Hash the weights again before loading them.")
@click.option("--prepacked", is_flag=True, help="Keep weights in the user's cache as this processor wants them.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object instead of streaming.")
def generate(
    bundle: Path,
    prompt: str,
    strategy: str | None,
    chain: int | None,
    min_confidence: float,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    threads: int | None,
    provider: str,
    verify_files: bool,
    prepacked: bool,
    json_: bool,
) -> None:
    """Continue PROMPT with the model in BUNDLE; a PROMPT of - is read from standard input.

    On a terminal recycled tokens are green. The summary goes to standard error.
    """
    import recycle_onnx

    text = _read_standard_input() if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty; expected some text to continue")
    model = recycle_onnx.load(bundle, provider=provider, threads=threads, verify=verify_files, prepacked=prepacked)
    generation = model.stream(
        text,
        max_new_tokens=max_new_tokens,
        strategy=strategy,
        chain=chain,
        min_confidence=min_confidence,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
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

"""Generate with every strategy of a bundle, side by side: recycled tokens are green.

python samples/compare.py BUNDLE PROMPT
"""

from __future__ import annotations

import sys

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

import recycle_onnx
from recycle_onnx.runtime.model import RecycleModel

TOKENS = 120
STRATEGIES = ("full", "alternate", "verify")


def column(model: RecycleModel, prompt: str, strategy: str, width: int) -> Panel:
    """One strategy's text with its three-line summary."""
    model.generate(prompt, strategy=strategy, max_new_tokens=TOKENS)  # warm up: the first run allocates
    generation = model.stream(prompt, strategy=strategy, max_new_tokens=TOKENS)
    text = Text(prompt, style="dim")
    for token in generation:
        text.append(token.text, style="bold green" if token.recycled else "")
    result = generation.result
    stats = result.stats
    rate = "" if stats.acceptance_rate is None else f", {stats.acceptance_rate:.0%} accepted"
    summary = Text(
        f"\n{stats.new_tokens} tokens, {stats.full_runs} full + {stats.recycle_runs} recycle runs{rate}\n"
        f"{stats.tokens_per_second:.0f} tokens/s\nlossless: {result.lossless}",
        style="cyan",
    )
    return Panel(Group(text, summary), title=strategy, width=width)


def main(bundle: str, prompt: str) -> None:
    """Print the columns, or one below the other where the terminal is narrow."""
    console = Console()
    model = recycle_onnx.load(bundle)
    names = [name for name in STRATEGIES if name in model.strategies]
    width = max(40, console.width // len(names) - 1)
    console.print(Columns([column(model, prompt, strategy, width) for strategy in names]))
    console.print("recycled tokens are [bold green]green[/]; `verify` gives the text of `full`, exactly")


if __name__ == "__main__":
    main(*sys.argv[1:3])

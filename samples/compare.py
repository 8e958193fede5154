"""Answer prompts with several strategies of a bundle: side by side, how fast, and whether the text is the same.

python samples/compare.py BUNDLE PROMPT... [--chat] [--strategies full,auto] [--tokens 128] [--rounds 3]

Everything is greedy. Every strategy answers each prompt `rounds` times, in turns and in alternating order, so that a
machine that is busy for a while slows all of them. What is shown of a strategy is its run of median speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from math import exp

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import recycle_onnx
from recycle_onnx.cli.report import printable
from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.generation import Generation, Result, Token
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.settings import MOST_LOGPROBS

USUAL = ("full", "alternate", "verify")
NARROWEST_COLUMN = 50
WARM_UP_TOKENS = 16
ROUNDING = (
    "In {precision} a run on several tokens rounds otherwise than a run on one. Where two words are about as likely "
    "that can decide between them, and the text goes on from there. In float32 the text is the same."
)


@dataclass(frozen=True)
class Answer:
    """One strategy's answer to one prompt, given as token ids."""

    prompt: list[int]
    tokens: list[Token]
    result: Result

    @property
    def seconds(self) -> float:
        """Of wall time for the whole answer, the reading of the prompt by both halves included."""
        return self.result.stats.prefill_s + self.result.stats.decode_s

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return len(self.tokens) / self.seconds


Runs = dict[str, list[Answer]]
"""By strategy, the answers to one prompt in the order they were made."""
Asker = Callable[[str, str, int], Generation]
"""Starts an answer: prompt, strategy, most tokens."""


def asker(model: Model, chat: bool) -> Asker:
    """Continue prompts as they are, or answer each as the first message of a chat."""
    if chat:
        return lambda prompt, strategy, most: model.conversation().send(
            prompt, strategy=strategy, max_new_tokens=most, temperature=0.0
        )
    return lambda prompt, strategy, most: model.stream(prompt, strategy=strategy, max_new_tokens=most, temperature=0.0)


def answer(generation: Generation) -> Answer:
    """Run to the end; the generation itself is not kept, as it holds the caches of both halves."""
    return Answer(generation.prompt, list(generation), generation.result)


def in_turns(ask: Asker, prompt: str, strategies: list[str], most: int, rounds: int) -> Iterator[tuple[str, Answer]]:
    """Every strategy's answers; each strategy runs a little before, as its first run allocates memory."""
    for strategy in strategies:
        answer(ask(prompt, strategy, WARM_UP_TOKENS))
    for number in range(rounds):
        for strategy in strategies if number % 2 == 0 else reversed(strategies):
            yield strategy, answer(ask(prompt, strategy, most))


def shown(runs: Runs, strategy: str) -> Answer:
    """Return the answer of median speed; of an even number, the slower one in the middle."""
    return sorted(runs[strategy], key=lambda run: run.speed)[(len(runs[strategy]) - 1) // 2]


def same_text(run: Answer, expected: Answer) -> bool:
    """Token for token."""
    return run.result.tokens == expected.result.tokens


def panel(strategy: str, run: Answer, beginning: str, width: int, frame: box.Box) -> Panel:
    """Show a text, recycled tokens green, with two lines on how it came about."""
    text, begun = Text(beginning, style="dim"), bool(beginning)
    for token in run.tokens:
        piece = printable(token.text if begun else token.text.lstrip())
        begun = begun or bool(piece)
        text.append(piece, style="bold green" if token.recycled else "")
    stats = run.result.stats
    summary = f"\n{stats.new_tokens} tokens in {stats.full_runs} full and {stats.recycle_runs} recycle runs\n"
    summary += f"{run.speed:.0f} tokens/s, lossless: {run.result.lossless}"
    return Panel(Group(text, Text(summary, style="cyan")), title=strategy, width=width, box=frame)


def side_by_side(console: Console, prompt: str, runs: Runs, chat: bool) -> RenderableType:
    """Show a column for each strategy, or one below the other where columns would be narrow."""
    width = console.width // len(runs) - 1
    fits = width >= NARROWEST_COLUMN
    size, frame = (width, box.ROUNDED) if fits else (console.width, box.HORIZONTALS)
    panels = [panel(name, shown(runs, name), "" if chat else prompt, size, frame) for name in runs]
    question = [Text(f"> {prompt}", style="bold")] if chat else []
    return Group(*question, Columns(panels) if fits else Group(*panels))


def departure(model: Model, prompt: str, expected: Answer, other: Answer) -> str:
    """Where another text leaves that of `full`, and how likely the full model finds both ways to go on."""
    ids, others = expected.result.tokens, other.result.tokens
    place = next(index for index, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    before = [*expected.prompt, *ids[:place]]
    result = model.generate(before, strategy="full", max_new_tokens=1, temperature=0.0, logprobs=MOST_LOGPROBS)
    likely = {one["id"]: one["logprob"] for one in (result.logprobs or [{}])[0].get("top_logprobs", ())}

    def way(token: int) -> str:
        chance = f"{exp(likely[token]):.1%}" if token in likely else f"not among its {MOST_LOGPROBS} likeliest"
        return f"{model.tokenizer.decode([token])!r} ({chance})"

    return f"  {prompt!r}, token {place + 1}: full has {way(ids[place])}, {other.result.strategy} {way(others[place])}"


@dataclass(frozen=True)
class Total:
    """One strategy over all prompts: speed from its runs of median speed, everything else from all runs."""

    strategy: str
    tokens_per_second: float
    accepted: int
    proposed: int
    same: int
    runs: int
    lossless: str

    @classmethod
    def of(cls, strategy: str, everything: list[Runs]) -> Total:
        """Add up."""
        medians = [shown(runs, strategy) for runs in everything]
        answers = [run for runs in everything for run in runs[strategy]]
        checked = [run.result.stats for run in answers if run.result.stats.acceptance_rate is not None]
        return cls(
            strategy,
            sum(len(run.tokens) for run in medians) / sum(run.seconds for run in medians),
            sum(stats.accepted for stats in checked),
            sum(stats.proposed for stats in checked),
            sum(same_text(run, runs["full"][0]) for runs in everything for run in runs[strategy]),
            len(answers),
            answers[0].result.lossless,
        )


def table(totals: list[Total]) -> Table:
    """One line a strategy; the first one is `full`."""
    lines = Table(box=None, pad_edge=False)
    for heading in ("strategy", "tokens/s", "speed", "accepted", "same text"):
        lines.add_column(heading, justify="left" if heading == "strategy" else "right")
    for total in totals:
        speed = total.tokens_per_second / totals[0].tokens_per_second
        share = f"{total.accepted / total.proposed:.0%}" if total.proposed else ""
        same = f"{total.same} of {total.runs}"
        lines.add_row(total.strategy, f"{total.tokens_per_second:.0f}", f"{speed:.2f}x", share, same)
    return lines


def verdict(total: Total, full: Total) -> str:
    """In a sentence or two, with the label that the runtime gives to this strategy's texts."""
    where = "every run" if total.same == total.runs else f"{total.same} of {total.runs} runs"
    ratio = total.tokens_per_second / full.tokens_per_second
    accepted = f" Of its {total.proposed} guesses, {total.accepted} were right." if total.proposed else ""
    label = f"lossless: {total.lossless}"
    return f"{total.strategy} was {ratio:.2f} times as fast as full, with the same text in {where} ({label}).{accepted}"


def compare(console: Console, model: Model, options: argparse.Namespace) -> None:
    """Print every prompt's answers, then the sums and where texts differ."""
    usual = [name for name in USUAL if name in model.strategies]
    wanted = options.strategies.split(",") if options.strategies else usual
    strategies = list(dict.fromkeys(["full", *wanted]))  # all are compared with the full model
    ask = asker(model, options.chat)
    everything: list[Runs] = []
    for prompt in options.prompts:
        runs: Runs = {name: [] for name in strategies}
        # No thread of its own redraws this line: it would take time from what is measured.
        with Live(console=console, auto_refresh=False, transient=True) as line:
            for strategy, run in in_turns(ask, prompt, strategies, options.tokens, options.rounds):
                runs[strategy].append(run)
                state = f"{prompt}: {strategy}, round {len(runs[strategy])} of {options.rounds}"
                line.update(Text(state), refresh=True)
        console.print(side_by_side(console, prompt, runs, options.chat))
        everything.append(runs)
    if console.color_system:
        console.print("Recycled tokens, those that were guessed, are [bold green]green[/].")
    totals = [Total.of(name, everything) for name in strategies]
    console.print("", table(totals), "", sep="\n")
    for total in totals[1:]:
        console.print(verdict(total, totals[0]), highlight=False)
    parted = [
        departure(model, prompt, runs["full"][0], shown(runs, name))
        for prompt, runs in zip(options.prompts, everything, strict=True)
        for name in strategies
        if not same_text(shown(runs, name), runs["full"][0])
    ]
    if parted:
        console.print("Where texts above part from full's, and how likely the full model finds each word there:")
        console.print(Text("\n".join(parted)))
    if any(total.lossless == "within_rounding" and total.same < total.runs for total in totals):
        console.print(ROUNDING.format(precision=model.bundle.manifest.precision), highlight=False)


def main() -> None:
    """Read the command line; say what is wrong in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--chat", action="store_true", help="each prompt is the first message of a chat")
    parser.add_argument("--strategies", help="with commas; default: full, alternate and verify")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="how often each strategy answers each prompt")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; expected at least 1")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what a file in an old encoding cannot hold
    try:
        compare(Console(), recycle_onnx.load(options.bundle), options)
    except RecycleError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

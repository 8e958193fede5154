"""How an answer is shown: markdown or tinted tokens with a live line on a terminal, plain text elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from recycle_onnx.cli.generate import RECYCLED
from recycle_onnx.untrusted import printable

if TYPE_CHECKING:
    from recycle_onnx.runtime.generation import Generation

SECONDS_BETWEEN_FRAMES = 0.1


class View:
    """A view of answers; `tint` shows recycled tokens green, and the text as it was written."""

    def __init__(self, console: Console, tint: bool) -> None:
        self.console, self.tint = console, tint

    @contextmanager
    def answer(self) -> Iterator[PlainAnswer]:
        """Open what shows the next answer."""
        if not self.console.is_terminal:
            yield PlainAnswer()
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            answer = LiveAnswer(live, tinted if self.tint else markdown)
            yield answer
        self.console.print(answer.final)


class PlainAnswer:
    """A view of an answer as plain text, for a pipe or a file."""

    def reading(self, read: int, total: int, what: str) -> None:
        """Ignore how far the prompt is read."""

    def show(self, generation: Generation) -> None:
        """Write the answer until it ends. A leading space belongs to the turn's beginning, and is left out."""
        begun = False
        for token in generation:
            text = token.text if begun else token.text.lstrip()
            begun = begun or bool(text)
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()


class LiveAnswer(PlainAnswer):
    """A view of an answer's end, as far as it fits the screen, and of its speed; of all of it at last."""

    def __init__(self, live: Live, render: Callable[[Generation], RenderableType]) -> None:
        self._live, self._render = live, render
        self._next = 0.0
        self.final: RenderableType = Text("(stopped)", style="dim")

    def reading(self, read: int, total: int, what: str) -> None:
        if read < total:
            self._draw(Text(f"{what}: {read} of {total} tokens", style="dim"))

    def show(self, generation: Generation) -> None:
        """Draw the answer until it ends; Ctrl-C stops it, after the step in progress."""
        with _on_ctrl_c(generation.cancel):
            for _ in generation:
                if time.monotonic() >= self._next:
                    self._draw(Group(Tail(self._render(generation)), live_line(generation)))
        self.final = Group(self._render(generation), live_line(generation))

    def _draw(self, what: RenderableType) -> None:
        self._live.update(what, refresh=True)
        self._next = time.monotonic() + SECONDS_BETWEEN_FRAMES


class Tail:
    """The last lines of something, as many as fit a screen with a line to spare."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options, pad=False)
        for line in lines[-max(1, options.size.height - 3) :]:
            yield from line
            yield Segment.line()


def markdown(generation: Generation) -> RenderableType:
    """Render the answer so far as the markdown it may be."""
    return Markdown(printable("".join(token.text for token in generation.tokens)))


def tinted(generation: Generation) -> RenderableType:
    """Render the answer so far, recycled tokens green.

    A token's colour is that of the token which completed its text.
    """
    parts = [(printable(token.text), RECYCLED if token.recycled else "") for token in generation.tokens]
    return Text.assemble(*parts)


def live_line(generation: Generation) -> Text:
    """Show tokens, speed and acceptance so far."""
    result = generation.result
    stats = result.stats
    rate = "" if stats.acceptance_rate is None else f" · {stats.acceptance_rate:.0%} accepted"
    stopped = " · stopped" if result.finish_reason == "cancelled" else ""
    line = f"{result.strategy} · {stats.new_tokens} tokens · {stats.tokens_per_second:.1f} tokens/s{rate}{stopped}"
    return Text(line, style="dim")


@contextmanager
def _on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C do something else for a block than to raise, which might be in the middle of a step."""
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""How an answer is shown: markdown or tinted tokens with a live line on a terminal, plain text elsewhere.

On a terminal whole blocks of the answer are printed once, and stay. Only the block that is being written, and a line of
figures below it, are drawn anew; `region` knows how, also where the window has changed its size meanwhile.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from recycle_onnx.cli.blocks import last_words, open_fence, split, whole_blocks
from recycle_onnx.cli.chat_input import unseen
from recycle_onnx.cli.generate import RECYCLED
from recycle_onnx.cli.region import Region
from recycle_onnx.untrusted import printable

if TYPE_CHECKING:
    from recycle_onnx.runtime.generation import Generation

SECONDS_BETWEEN_FRAMES = 0.1
"""Drawing markdown takes milliseconds, which tokens would wait for if each were drawn."""
SPARE_ROWS = 2
"""Of the screen: the line of figures, and one so that nothing scrolls while it is drawn."""


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
        with unseen(), Region.open(self.console) as region:
            yield LiveAnswer(self.console, region, tinted if self.tint else markdown)


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
    """A view of an answer while it is made, with its speed; at last all of it stands there."""

    def __init__(self, console: Console, region: Region, render: Callable[[Text], RenderableType]) -> None:
        self._console, self._region, self._render = console, region, render
        self._answer = Text()
        self._tokens = self._printed = self._shown = 0
        """Tokens in the answer's text so far; its characters that are printed for good; those on the screen."""
        self._next = 0.0

    def reading(self, read: int, total: int, what: str) -> None:
        if read < total:
            self._region.draw([], f"{what}: {read} of {total} tokens")

    def show(self, generation: Generation) -> None:
        """Draw the answer until it ends; Ctrl-C stops it, after the step in progress."""
        try:
            with _on_ctrl_c(generation.cancel):
                for _ in generation:
                    if time.monotonic() >= self._next:
                        self._frame(generation)
                        self._next = time.monotonic() + SECONDS_BETWEEN_FRAMES
        finally:
            self._finish(generation)

    def _frame(self, generation: Generation) -> None:
        self._take(generation)
        if self._region.resized():
            self._keep_what_is_there()
            return
        end = last_words(self._answer.plain)
        with self._console:  # writes all of a frame at once
            self._region.erase()
            self._print_blocks(end)
            rows, most = self._rows(end), max(1, self._console.height - SPARE_ROWS)
            if len(rows) > most and self._print_part(end):
                rows = self._rows(end)
            self._region.draw(rows[-most:], generation.result.figures)
            self._shown = end

    def _finish(self, generation: Generation) -> None:
        self._take(generation)
        if self._region.resized():
            self._keep_what_is_there()
        with self._console:
            self._region.erase()
            self._print_blocks(len(self._answer))
            if self._answer.plain[self._printed :].strip():
                self._console.print(self._rendered(self._printed, len(self._answer)))
            self._console.print(Text(generation.result.figures, style="dim"))

    def _take(self, generation: Generation) -> None:
        """Add what is new of the answer to its text, recycled tokens in their colour.

        A token's colour is that of the token which completed its text.
        """
        for token in generation.tokens[self._tokens :]:
            text = printable(token.text) if self._answer else printable(token.text).lstrip()
            self._answer.append(text, RECYCLED if token.recycled else "")
        self._tokens = len(generation.tokens)

    def _keep_what_is_there(self) -> None:
        """Leave the rows as the terminal has them at its new size; what comes goes on below them, at the next word."""
        self._region.leave()
        self._printed = max(self._printed, self._shown)

    def _print_blocks(self, end: int) -> None:
        """Print what is whole, with an empty line behind it: there is more to come."""
        length = whole_blocks(self._before() + self._answer.plain[self._printed : end]) - len(self._before())
        if length > 0:
            self._console.print(self._rendered(self._printed, self._printed + length))
            self._console.print()
            self._printed += length

    def _print_part(self, end: int) -> bool:
        """Print the beginning of a block that has become too tall; False where it is one long word."""
        length = split(self._answer.plain[self._printed : end])
        if length:
            self._console.print(self._rendered(self._printed, self._printed + length))
            self._printed += length
        return bool(length)

    def _rows(self, end: int) -> list[list[Segment]]:
        if not self._answer.plain[self._printed : end].strip():
            return []
        return self._region.rows(self._rendered(self._printed, end))

    def _rendered(self, start: int, end: int) -> RenderableType:
        part = self._answer[start:end]
        part.rstrip()
        return self._render(Text.assemble(self._before(), part) if self._before() else part)

    def _before(self) -> str:
        """Return what a code block that is printed in part began with, so that its rest is code too."""
        return open_fence(self._answer.plain[: self._printed]) if self._render is markdown else ""


def markdown(text: Text) -> RenderableType:
    """Render a part of an answer as the markdown it may be."""
    return Markdown(text.plain)


def tinted(text: Text) -> RenderableType:
    """Render a part of an answer as it was written, recycled tokens green."""
    return text


@contextmanager
def _on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C do something else for a block than to raise, which might be in the middle of a step."""
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
